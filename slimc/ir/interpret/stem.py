"""What T2T-ViT's stem means, in float64 NumPy."""

from __future__ import annotations

import numpy as np

from slimc.ir import FloatArray, Performer, SoftSplit
from slimc.ir.interpret.linear import Float64, apply, gelu, normalise


def split_softly(stage: SoftSplit, images: Float64) -> Float64:
    """The map [B, D, h, w] that a stage of the T2T stem makes of the map `images` [B, E, H, W]."""
    pad = (stage.padding, stage.padding)
    windows: Float64 = np.lib.stride_tricks.sliding_window_view(
        np.pad(images, ((0, 0), (0, 0), pad, pad)), (stage.side, stage.side), axis=(2, 3)
    )[:, :, :: stage.stride, :: stage.stride]
    batch, _, height, width = windows.shape[:4]
    rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(batch, height * width, -1)
    if stage.performer is not None:
        rows = perform(stage.performer, rows)
    maps: Float64 = rows.transpose(0, 2, 1).reshape(batch, -1, height, width)
    return maps


def perform(performer: Performer, x: Float64) -> Float64:
    """The rows [B, N, D] that a performer layer makes of the rows `x` [B, N, E]."""
    n = normalise(performer.norm1, x)
    k, q, v = (apply(linear, n) for linear in (performer.key, performer.query, performer.value))
    k, q = _random_features(performer.features, k), _random_features(performer.features, q)
    mixed = q @ (k.transpose(0, 2, 1) @ v) / (q @ k.sum(1)[:, :, None] + 1e-8)
    y = v + apply(performer.output, mixed)
    return y + apply(performer.down, gelu(apply(performer.up, normalise(performer.norm2, y))))


def _random_features(features: FloatArray, u: Float64) -> Float64:
    exponent = u @ features.astype(np.float64).T - np.square(u).sum(-1, keepdims=True) / 2
    return np.asarray(np.exp(exponent) / np.sqrt(len(features)))
