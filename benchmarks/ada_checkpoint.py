"""A random full-size Ada-DeiT-S checkpoint whose policies let a given share of branches, heads and tokens run.

The policies' biases are quantiles of their logits over seeded pictures, block by block, so that every decision depends on
the image. Token policies tell patches apart rather than images, so that the number of tokens varies less than from none
to all, which is what random weights would do. The pictures are noise smoothed at random scales, with random contrast.

    python -m benchmarks.ada_checkpoint ada_deit_s.pth --share 0.65 --pictures images --count 64
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from slimc.ir.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from slimc.models.ada_vit_network import AdaptiveBlock, AdaptiveVisionTransformer, AdaVitConfig, Policy

ADA_DEIT_S = AdaVitConfig(
    image=(224, 224),
    patch=(16, 16),
    dim=384,
    depth=12,
    heads=6,
    hidden=(1536,) * 12,
    classes=1000,
    eps=1e-6,
    qkv_bias=True,
    heads_from=1,
    branches_from=1,
    tokens_from=0,
    tokens_with_mlp=True,
)
ARGS = {"ada_head": True, "ada_layer": True, "ada_token": True, "ada_token_with_mlp": True, "img_size": 224}


def write_checkpoint(path: Path, share: float, *, config: AdaVitConfig = ADA_DEIT_S, seed: int = 0) -> None:
    """Write a checkpoint to `path` whose policies are on for `share` of seeded pictures."""
    torch.manual_seed(seed)
    network = AdaptiveVisionTransformer(config).eval()
    with torch.inference_mode():
        _randomise(network)
        _set_biases(network, torch.from_numpy(normalised(pictures(32, config.image, seed))), share)
    args = argparse.Namespace(**ARGS)
    torch.save({"state_dict": network.state_dict(), "arch": "ada_step_deit_small_patch16_224", "args": args}, path)


def _randomise(network: AdaptiveVisionTransformer) -> None:
    for name, parameter in network.named_parameters():
        fan_in = parameter[0].numel()
        if "norm" in name:
            parameter.normal_(float(name.endswith("weight")), 0.1)
        elif name.endswith("weight"):
            parameter.normal_(0.0, fan_in**-0.5)
        else:
            parameter.normal_(0.0, 0.02)


def _set_biases(network: AdaptiveVisionTransformer, images: Tensor, share: float) -> None:
    """Let every policy decide for `share` of `images`."""
    rows = network.patch_embed(images)
    x = torch.cat((network.cls_token.expand(len(rows), -1, -1), rows), 1) + network.pos_embed
    for block in network.blocks:
        assert isinstance(block, AdaptiveBlock)
        for policy in (block.layer_select, block.head_select):
            if policy is not None:
                _set_bias(policy, x[:, 0], share)
        if block.attn.token_select is not None:
            n = block.norm1(x)[:, 1:]
            _forget(block.attn.token_select, n.mean(1))
            _set_bias(block.attn.token_select, n.flatten(0, 1), share)
        x, _ = block(x)


def _forget(policy: Policy, means: Tensor, components: int = 24) -> None:
    """Take the directions in which images differ from one another out of the policy: it tells patches apart, not images."""
    directions = torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh[:components]
    weight = policy.mlp_head.weight
    weight.copy_(weight - weight @ directions.T @ directions)


def _set_bias(policy: Policy, x: Tensor, share: float) -> None:
    policy.mlp_head.bias.zero_()
    quantile = policy.mlp_head(x).quantile(1 - share, dim=0)
    policy.mlp_head.bias.copy_(policy.logit_threshold - quantile)


def pictures(count: int, image: tuple[int, int], seed: int) -> np.ndarray:
    """Random pictures [count, height, width, 3], uint8."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(image[0])[:, None], np.fft.rfftfreq(image[1])[None]) * image[0]
    results = []
    for _ in range(count):
        spectrum = np.fft.rfft2(generator.standard_normal((3, *image)))
        field = np.fft.irfft2(spectrum / (1 + frequency) ** generator.uniform(0.5, 2), image)
        field = field / field.std() * generator.uniform(20, 70) + generator.uniform(60, 200, (3, 1, 1))
        results.append(field.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    return np.stack(results)


def normalised(images: np.ndarray) -> np.ndarray:
    """Pictures as the network's input [count, 3, height, width] float32."""
    pixels = (images.astype(np.float32) / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)


def write_pictures(directory: Path, count: int, image: tuple[int, int], seed: int) -> None:
    """Write `count` random pictures as PNG files."""
    directory.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures(count, image, seed)):
        Image.fromarray(picture).save(directory / f"{i:0{math.ceil(math.log10(count + 1))}}.png")


def main() -> None:
    """Write one checkpoint, and perhaps pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--share", type=float, default=0.65)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=Path, metavar="DIR")
    parser.add_argument("--count", type=int, default=64)
    options = parser.parse_args()
    write_checkpoint(options.path, options.share, seed=options.seed)
    if options.pictures:
        write_pictures(options.pictures, options.count, ADA_DEIT_S.image, options.seed)


if __name__ == "__main__":
    main()
