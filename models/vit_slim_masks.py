"""From ViT-Slim's zetas and three budgets to binary masks (Chavan et al., arXiv 2201.00814, section 3.3).

The zetas of one kind over all layers are sorted ascending; with n of them and a budget b, the threshold is the entry
int((1. - b) * n), and a zeta at or above it is kept. Patches compare float32 tanh(zeta), and a patch that is gone in one
layer is gone in all later ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from slimc.errors import BudgetError
from slimc.ir import FloatArray


@dataclass(frozen=True)
class Budgets:
    """Shares of the attention channels, FFN channels and patch positions to keep, each in (0, 1]."""

    attn: float
    mlp: float
    patch: float


@dataclass(frozen=True, eq=False)
class Zetas:
    """The learnt importances of one layer: attention [H, d], [H, 1] or [1, d]; mlp [F]; patch [T]."""

    attn: FloatArray
    mlp: FloatArray
    patch: FloatArray


@dataclass(frozen=True, eq=False)
class Masks:
    """What multiplies one layer, float32: attention [H, d], mlp [F], patch [T]."""

    attn: FloatArray
    mlp: FloatArray
    patch: FloatArray


@dataclass(frozen=True)
class Thresholds:
    """The least importance that is kept, of each kind."""

    attn: float
    mlp: float
    patch: float


def threshold(values: Sequence[FloatArray], budget: float, option: str) -> float:
    """The entry int((1. - budget) * n) of all `values`, sorted ascending.

    Raises:
        BudgetError: the budget is not a number in (0, 1], or so small that nothing would be left.
    """
    check_budget(budget, option)
    ordered = np.sort(np.concatenate([value.ravel() for value in values]))
    index = int((1.0 - budget) * len(ordered))
    if index >= len(ordered):
        raise BudgetError(f"{option}: {budget} of {len(ordered)} keeps nothing; expected a number above 0 and up to 1")
    return float(ordered[index])


def check_budget(budget: object, option: str) -> float:
    """`budget` as a number in (0, 1].

    Raises:
        BudgetError: it is something else.
    """
    if (
        isinstance(budget, bool)
        or not isinstance(budget, (int, float))
        or not math.isfinite(budget)
        or not 0 < budget <= 1
    ):
        raise BudgetError(f"{option}: {budget!r} is not a budget; expected a number above 0 and up to 1")
    return float(budget)


def binary_masks(zetas: Sequence[Zetas], budgets: Budgets, heads: int, head_dim: int) -> tuple[list[Masks], Thresholds]:
    """The masks of every layer under `budgets`, and the thresholds they came from."""
    patches = [squash(layer.patch) for layer in zetas]
    limits = Thresholds(
        attn=threshold([layer.attn for layer in zetas], budgets.attn, "--budget-attn"),
        mlp=threshold([layer.mlp for layer in zetas], budgets.mlp, "--budget-mlp"),
        patch=threshold(patches, budgets.patch, "--budget-patch"),
    )
    masks: list[Masks] = []
    later = np.zeros(len(patches[0]), bool)
    for layer, patch in zip(reversed(zetas), reversed(patches), strict=True):
        later = later | (patch >= np.float32(limits.patch))
        attn = np.broadcast_to(layer.attn >= np.float32(limits.attn), (heads, head_dim))
        mlp = layer.mlp >= np.float32(limits.mlp)
        masks.append(Masks(attn.astype(np.float32), mlp.astype(np.float32), later.astype(np.float32)))
    return masks[::-1], limits


def full_masks(zetas: Sequence[Zetas], heads: int, head_dim: int) -> list[Masks]:
    """Masks that are one everywhere."""
    return [Masks(*(np.ones(n, np.float32) for n in ((heads, head_dim), z.mlp.shape, z.patch.shape))) for z in zetas]


def squash(patch_zeta: FloatArray) -> FloatArray:
    """Float32 tanh, by torch: its rounding decides which patches tie at exactly 1."""
    squashed: FloatArray = torch.tanh(torch.from_numpy(patch_zeta)).numpy()
    return squashed
