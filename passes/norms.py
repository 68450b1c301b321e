"""Norms over fewer or more channels: what is removed, or padded, is zero and keeps its place in mean and variance.

With n channels of which m are left, all others zero:

    RMSNorm      x / sqrt(sum x^2 / n + eps) w  =  x / sqrt(sum x^2 / m + eps n / m) (w sqrt(n / m))
    LayerNorm    mean = sum / n,  variance = (sum over the m of (x - mean)^2 + (n - m) mean^2) / n

The first is an RMSNorm of m channels; the second is what `LayerNorm.ghosts` says. Padding is the other way round: m > n.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from slimc.ir import IndexArray, LayerNorm, Norm, RmsNorm


def keep_channels(norm: Norm | None, kept: IndexArray) -> Norm | None:
    """`norm` over the channels `kept`, where all others are zero."""
    if norm is None or len(kept) == len(norm.weight):
        return norm
    count = len(norm.weight)
    if isinstance(norm, LayerNorm):
        return replace(norm, weight=norm.weight[kept], bias=norm.bias[kept], ghosts=norm.ghosts + count - len(kept))
    return _rescaled(replace(norm, weight=norm.weight[kept]), count, len(kept))


def place_channels(norm: Norm | None, places: IndexArray, count: int) -> Norm | None:
    """`norm` with channel i at `places[i]` of `count` channels; the others are zero and are not to count."""
    if norm is None:
        return norm
    weight = np.zeros(count, norm.weight.dtype)
    weight[places] = norm.weight
    added = count - len(places)
    if isinstance(norm, RmsNorm):
        return _rescaled(replace(norm, weight=weight), len(places), count)
    bias = np.zeros(count, norm.bias.dtype)
    bias[places] = norm.bias
    return replace(norm, weight=weight, bias=bias, ghosts=norm.ghosts - added)


def _rescaled(norm: RmsNorm, before: int, now: int) -> RmsNorm:
    """An RMSNorm over `now` channels that divides as one over `before` did."""
    if now in (0, before):
        return norm
    factor = norm.weight.dtype.type(math.sqrt(before / now))
    return RmsNorm(norm.weight * factor, norm.eps * before / now)
