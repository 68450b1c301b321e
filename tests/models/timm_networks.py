"""timm's plain vision transformers for tests: every entry point, its own switches, a tiny geometry, random weights."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import timm
import torch
from timm.models import model_entrypoint

from slimc import ir
from slimc.ir.interpret.attention import turns_key_bias

MODULES = ("vision_transformer", "eva", "deit")


def entry_points() -> list[str]:
    """Every entry point of the families that have plain vision transformers."""
    return [name for name in timm.list_models() if model_entrypoint(name).__module__.rpartition(".")[2] in MODULES]


def tiny(name: str, seed: int = 0, **changes: Any) -> torch.nn.Module:
    """The network `name` with two blocks of 4 heads, 48 channels wide, of 3 x 2 patches, in float64, in eval mode.

    Every parameter is random: norms, layer scales, registers and the frequencies of learnt rotations too.
    """
    patch = _patch_size(name)
    arguments = {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": (3 * patch, 2 * patch)}
    if "sapiens2" in name:
        arguments["num_kv_heads"] = 2
    network = timm.create_model(name, pretrained=False, **{**arguments, **changes}).eval().double()
    return randomise(network, seed)


def randomise(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """`network` with other weights, none of which is trivial."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor, std: float, mean: float = 0.0) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64) * std + mean

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(normal(parameter, 0.2, 1.0))
            elif "gamma" in name:
                parameter.copy_(normal(parameter, 0.3, 0.5))
            elif parameter.ndim == 2 and name.endswith("weight"):
                parameter.copy_(normal(parameter, parameter.shape[1] ** -0.5))
            elif parameter.ndim == 4 and name.endswith("weight"):
                parameter.copy_(normal(parameter, parameter[0].numel() ** -0.5))
            else:
                parameter.copy_(normal(parameter, 0.5))
    return network


def images_of(network: torch.nn.Module, count: int = 2) -> torch.Tensor:
    """Standard normal images that a `tiny` network takes, float32 numbers in float64."""
    generator = torch.Generator().manual_seed(count)
    size: Any = network.patch_embed.img_size  # type: ignore[union-attr]
    channels: Any = network.patch_embed.proj.in_channels  # type: ignore[union-attr]
    return torch.randn((count, channels, *size), generator=generator).double()


def _patch_size(name: str) -> int:
    """The side of the patches of the network `name`."""
    source = inspect.getsource(model_entrypoint(name))
    found = source.split("patch_size=")
    if len(found) > 1:
        return int("".join(c for c in found[1][:3] if c.isdigit()))
    return 16


def masks_of(model: ir.Model, random: np.random.Generator) -> dict[str, Any]:
    """Random masks of every kind that `model` allows, by name: about a third of everything goes."""

    def draw(*shape: int) -> np.ndarray[Any, Any]:
        return (random.random(shape) > 0.35).astype(np.float32)

    found: dict[str, Any] = {}
    for i, block in enumerate(model.blocks):
        attention, mlp = block.attention, block.mlp
        assert isinstance(attention, ir.Attention)
        assert isinstance(mlp, ir.Mlp)
        heads, d_qk, d_v = len(attention.heads), *(len(getattr(attention.heads[0], k).weight) for k in ("key", "value"))
        found |= {f"blocks.{i}.v": draw(heads, d_v), f"blocks.{i}.hidden": draw(len(mlp.up.weight))}
        if not attention.normed:
            found[f"blocks.{i}.qk"] = draw(heads, d_qk)
    found["blocks.1.heads"] = draw(heads)
    if not any(turns_key_bias(block.attention) for block in model.blocks if isinstance(block.attention, ir.Attention)):
        patches = model.grid[0] * model.grid[1]
        first = np.ones(patches, np.float32)
        first[random.integers(patches)] = 0
        last = first.copy()
        last[random.permutation(np.flatnonzero(first))[:2]] = 0
        found["patches"] = np.stack([first, last])
    pool = model.classifier.pool
    if isinstance(pool, ir.LatentPool):
        found |= {
            "attn_pool.heads": draw(len(pool.heads)),
            "attn_pool.v": draw(len(pool.heads), len(pool.heads[0].value.weight)),
        }
        if pool.mlp is not None:
            found["attn_pool.hidden"] = draw(len(pool.mlp.up.weight))
    return found
