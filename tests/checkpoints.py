"""Small ViT-Slim checkpoints in the layouts that training scripts save, for tests of reading and compiling."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from slimc.ir.preprocessing import IMAGENET_MEAN, IMAGENET_STD

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """A ViT-Slim network and how its zetas are laid out."""

    dim: int = 12
    heads: int = 3
    depth: int = 2
    hidden: int = 16
    patch: tuple[int, int] = (2, 2)
    grid: tuple[int, int] = (3, 3)
    classes: int = 5
    zeta: Literal["channel", "head", "uniform"] = "channel"
    qkv_bias: bool = True
    distilled: bool = False
    representation: int | None = None
    seed: int = 0

    @property
    def image(self) -> tuple[int, int]:
        return self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1] + (2 if self.distilled else 1)


def state_dict(recipe: Recipe = Recipe()) -> State:
    """A state dict with random weights; no bias, norm or zeta is trivial."""
    generator = torch.Generator().manual_seed(recipe.seed)
    dim, hidden, classes = recipe.dim, recipe.hidden, recipe.classes

    def normal(*shape: int, mean: float = 0.0, std: float = 0.3) -> torch.Tensor:
        return torch.empty(shape).normal_(mean, std, generator=generator)

    def linear(name: str, out: int, into: int, *, bias: bool = True) -> State:
        weight = {f"{name}.weight": normal(out, into, std=into**-0.5)}
        return {**weight, f"{name}.bias": normal(out)} if bias else weight

    def norm(name: str) -> State:
        return {f"{name}.weight": normal(dim, mean=1.0), f"{name}.bias": normal(dim)}

    head_dim = dim // recipe.heads
    zeta = {"channel": (recipe.heads, head_dim), "head": (recipe.heads, 1), "uniform": (1, head_dim)}[recipe.zeta]
    features = recipe.representation or dim
    state = {
        "cls_token": normal(1, 1, dim),
        "pos_embed": normal(1, recipe.tokens, dim),
        "patch_embed.proj.weight": normal(dim, 3, *recipe.patch),
        "patch_embed.proj.bias": normal(dim),
        **norm("norm"),
        **linear("head", classes, features),
    }
    if recipe.distilled:
        state |= {"dist_token": normal(1, 1, dim), **linear("head_dist", classes, dim)}
    if recipe.representation:
        state |= linear("pre_logits.fc", recipe.representation, dim)
    for layer in range(recipe.depth):
        name = f"blocks.{layer}"
        state |= {
            **norm(f"{name}.norm1"),
            **linear(f"{name}.attn.qkv", 3 * dim, dim, bias=recipe.qkv_bias),
            **linear(f"{name}.attn.proj", dim, dim),
            f"{name}.attn.zeta": normal(1, 1, zeta[0], 1, zeta[1], mean=0.5, std=0.5),
            f"{name}.attn.patch_zeta": normal(1, recipe.tokens, 1, mean=0.5, std=0.8),
            **norm(f"{name}.norm2"),
            **linear(f"{name}.mlp.fc1", hidden, dim),
            **linear(f"{name}.mlp.fc2", dim, hidden),
            f"{name}.mlp.zeta": normal(1, 1, hidden, mean=0.5, std=0.5),
        }
    return state


def arguments(attn: float = 0.7, mlp: float = 0.7, patch: float = 0.7, **others: Any) -> argparse.Namespace:
    """Arguments as a retraining run saves them, which says how its images were normalised."""
    budgets = {"budget_attn": attn, "budget_mlp": mlp, "budget_patch": patch}
    images = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    return argparse.Namespace(model="deit_small_patch16_224", nb_classes=5, **{**budgets, **images, **others})


def save(path: Path, content: object, *, legacy: bool = False) -> Path:
    """Write `content` as torch.save does: a zip archive, or the format before it."""
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def small_checkpoint(path: Path, recipe: Recipe = Recipe(), **budgets: float) -> Path:
    """A retraining-stage checkpoint at `path`."""
    return save(path, {"model": state_dict(recipe), "epoch": 3, "args": arguments(**budgets)})
