"""Random full-size ViT-Slim checkpoints whose zetas resemble those of a real search.

Real searches prune deep layers hardest and leave ragged heads: a layer's zetas fall with depth, every head has a level
of its own, and channels scatter around it, as in the really searched digits checkpoint in slimc/cli/data.

    python -m benchmarks.checkpoints deit-s deit_s.pth --budget 0.7
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

# name: (dim, depth, heads, patch, image)
SIZES = {
    "deit-t": (192, 12, 3, 16, 224),
    "deit-s": (384, 12, 6, 16, 224),
    "deit-b": (768, 12, 12, 16, 224),
    "vit-l": (1024, 24, 16, 16, 224),
    "vit-h": (1280, 32, 16, 14, 224),
}


def write_checkpoint(size: str, path: Path, budget: float, seed: int = 0, classes: int = 1000) -> None:
    """Write a retraining-stage ViT-Slim checkpoint of the given size to `path`."""
    generator = torch.Generator().manual_seed(seed)
    dim, depth, heads, patch, image = SIZES[size]
    tokens = (image // patch) ** 2 + 1

    def normal(*shape: int, std: float = 0.02, mean: float = 0.0) -> torch.Tensor:
        return torch.empty(shape).normal_(mean, std, generator=generator)

    state = {
        "cls_token": normal(1, 1, dim),
        "pos_embed": normal(1, tokens, dim),
        "patch_embed.proj.weight": normal(dim, 3, patch, patch),
        "patch_embed.proj.bias": normal(dim),
        "norm.weight": normal(dim, std=0.1, mean=1.0),
        "norm.bias": normal(dim),
        "head.weight": normal(classes, dim, std=0.05),
        "head.bias": normal(classes),
    }
    for layer in range(depth):
        name = f"blocks.{layer}"
        state |= {
            f"{name}.norm1.weight": normal(dim, std=0.1, mean=1.0),
            f"{name}.norm1.bias": normal(dim),
            f"{name}.attn.qkv.weight": normal(3 * dim, dim, std=dim**-0.5),
            f"{name}.attn.qkv.bias": normal(3 * dim),
            f"{name}.attn.proj.weight": normal(dim, dim, std=dim**-0.5),
            f"{name}.attn.proj.bias": normal(dim),
            f"{name}.norm2.weight": normal(dim, std=0.1, mean=1.0),
            f"{name}.norm2.bias": normal(dim),
            f"{name}.mlp.fc1.weight": normal(4 * dim, dim, std=dim**-0.5),
            f"{name}.mlp.fc1.bias": normal(4 * dim),
            f"{name}.mlp.fc2.weight": normal(dim, 4 * dim, std=(4 * dim) ** -0.5),
            f"{name}.mlp.fc2.bias": normal(dim),
            **_zetas(name, layer / max(depth - 1, 1), (dim, heads, tokens), generator),
        }
    args = argparse.Namespace(
        model=size, input_size=image, nb_classes=classes, budget_attn=budget, budget_mlp=budget, budget_patch=budget
    )
    torch.save({"model": state, "epoch": 299, "args": args}, path)


def _zetas(
    name: str, relative_depth: float, shape: tuple[int, int, int], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Zetas of one layer: levels that fall with depth, one more level a head, scatter a channel."""
    dim, heads, tokens = shape

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(size, generator=generator)

    patch_zeta = 1.6 - 0.5 * relative_depth + 1.2 * (uniform(1, tokens, 1) - 0.5)
    patch_zeta[:, 0] = 3.0  # searches keep cls
    level = 0.75 - 0.35 * relative_depth
    head_levels = level + 0.3 * (uniform(1, 1, heads, 1, 1) - 0.5)
    return {
        f"{name}.attn.zeta": (head_levels + 0.5 * (uniform(1, 1, heads, 1, dim // heads) - 0.5)).clamp(0.01, 1.0),
        f"{name}.mlp.zeta": (level + 0.6 * (uniform(1, 1, 4 * dim) - 0.5)).clamp(0.01, 1.0),
        f"{name}.attn.patch_zeta": patch_zeta,
    }


def main() -> None:
    """Write one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("path", type=Path)
    parser.add_argument("--budget", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_checkpoint(options.size, options.path, options.budget, options.seed)


if __name__ == "__main__":
    main()
