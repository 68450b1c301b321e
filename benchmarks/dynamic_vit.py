"""Random full-size DynamicViT checkpoints.

What such a network keeps is another matter, but how many patches it keeps is not, so that its speed is that of a trained
one.

    python -m benchmarks.dynamic_vit deit-s deit_s.pth --keep-rate 0.7
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from slimc.models.dynamic_vit_network import DynamicVisionTransformer, DynamicVitConfig

# name: (LV-ViT, dim, depth, heads, hidden, blocks before which patches are dropped)
SIZES = {
    "deit-256": (False, 256, 12, 4, 1024, (3, 6, 9)),
    "deit-s": (False, 384, 12, 6, 1536, (3, 6, 9)),
    "deit-b": (False, 768, 12, 12, 3072, (3, 6, 9)),
    "lvvit-s": (True, 384, 16, 6, 1152, (4, 8, 12)),
    "lvvit-m": (True, 512, 20, 8, 1536, (5, 10, 15)),
}
_STEM = ((64, 7), (64, 3), (64, 3))


def write_checkpoint(size: str, path: Path, keep_rate: float = 0.7, seed: int = 0) -> None:
    """Write a random DynamicViT checkpoint of the given size to `path`, as the released training script saves one."""
    lvvit, dim, depth, heads, hidden, places = SIZES[size]
    config = DynamicVitConfig(
        image=(224, 224), patch=(16, 16), dim=dim, depth=depth, heads=heads, hidden=(hidden,) * depth, classes=1000,
        pruning_loc=places, keep=(196,) * len(places), qkv_bias=not lvvit, stem=_STEM if lvvit else (), auxiliary=lvvit,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    state = DynamicVisionTransformer(config).state_dict()
    for key, tensor in state.items():
        if tensor.ndim > 1:
            tensor.normal_(0.0, tensor[0].numel() ** -0.5 if tensor.shape[0] > 1 else 0.02, generator=generator)
        elif key.endswith("bias"):
            tensor.normal_(0.0, 0.02, generator=generator)
    args = argparse.Namespace(model=size, input_size=224, nb_classes=1000, base_rate=keep_rate)
    torch.save({"model": state, "epoch": 29, "args": args}, path)


def main() -> None:
    """Write one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("path", type=Path)
    parser.add_argument("--keep-rate", type=float, default=0.7)
    options = parser.parse_args()
    write_checkpoint(options.size, options.path, options.keep_rate)


if __name__ == "__main__":
    main()
