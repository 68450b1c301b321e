"""What is read from the residual stream, in float64 NumPy: the meaning of `slimc.ir.readout`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from slimc.ir import BoolArray, Classifier, LatentHead, LatentPool, Output, Pool
from slimc.ir.interpret.linear import Float64, apply, factor, hidden_units, normalise


def read_out(
    classifier: Classifier,
    outputs: Iterable[Output],
    x: Float64,
    grid: tuple[int, int],
    patches: BoolArray | None = None,
) -> dict[str, Float64]:
    """`outputs` of the last rows `x` [B, N, C], by name; an auxiliary head reads the rows that `patches` [B, N] marks."""
    found: dict[str, Float64] = {}
    n = normalise(classifier.norm, x)
    for output in outputs:
        if output.kind == "tokens":
            found[output.name] = token_rows(output, n, grid)
        elif output.kind == "features":
            found[output.name] = np.mean(features(classifier, n), axis=0)
        else:
            found[output.name] = _logits(classifier, n, patches)
    return found


def token_rows(output: Output, rows: Float64, grid: tuple[int, int]) -> Float64:
    """The rows of the stream [B, N, C] that `output` consists of, in its layout."""
    chosen = rows[:, output.rows]
    if output.layout == "NLC":
        return chosen
    maps: Float64 = chosen.transpose(0, 2, 1).reshape(len(rows), -1, *grid)
    return maps


def features(classifier: Classifier, n: Float64) -> list[Float64]:
    """The features [B, F] that every head reads, of the normalised rows [B, N, C]."""
    pooled = [n[:, row] for row in classifier.rows]
    if classifier.pool is not None:
        pool = classifier.pool
        pooled = [pool_rows(pool, n) if isinstance(pool, Pool) else attend_latent(pool, n)]
    pooled = [normalise(classifier.pooled_norm, row) for row in pooled]
    if classifier.pre_logits is None:
        return pooled
    return [np.tanh(apply(classifier.pre_logits, row)) for row in pooled]


def classify(classifier: Classifier, x: Float64, patches: BoolArray | None = None) -> Float64:
    """Logits [B, classes] of the last rows [B, N, C]; an auxiliary head reads those that `patches` [B, N] marks."""
    return _logits(classifier, normalise(classifier.norm, x), patches)


def _logits(classifier: Classifier, n: Float64, patches: BoolArray | None) -> Float64:
    parts = [apply(head, row) for head, row in zip(classifier.heads, features(classifier, n), strict=True)]
    logits: Float64 = np.sum(parts, axis=0) * classifier.scale
    if classifier.auxiliary is not None:
        assert patches is not None
        each = apply(classifier.auxiliary, n)
        logits = logits + np.where(patches[..., None], each, -np.inf).max(1)
    return logits


def pool_rows(pool: Pool, n: Float64) -> Float64:
    """Features [B, C] (or [B, 2 C]) of the rows [B, N, C]."""
    rows = n[:, pool.rows]
    if pool.kind == "token+avg":
        return np.concatenate([rows[:, 0], rows[:, 1:].mean(1)], axis=-1)
    mean, largest = rows.mean(1), rows.max(1)
    pooled: Float64 = {"avg": mean, "max": largest, "avgmax": 0.5 * (mean + largest)}[pool.kind]
    return pooled


def attend_latent(pool: LatentPool, n: Float64) -> Float64:
    """Features [B, C] of the rows [B, N, C] by a learnt query."""
    rows = n[:, pool.rows]
    y = np.zeros((len(n), n.shape[2]))
    for head in pool.heads:
        y = y + _mix(head, rows, pool.scale) @ head.output.astype(np.float64).T
    if pool.output_bias is not None:
        y = y + pool.output_bias
    if pool.mlp is None:
        return y
    return y + apply(pool.mlp.down, hidden_units(pool.mlp, normalise(pool.mlp.norm, y)))


def _mix(head: LatentHead, rows: Float64, scale: float) -> Float64:
    """What one head of a latent pool mixes [B, d_v]."""
    mask = factor(head.mask)
    scores = (apply(head.key, rows) * mask) @ (head.query * mask) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    mixed: Float64 = (weights[:, None] @ (apply(head.value, rows) * factor(head.value_mask)))[:, 0]
    return mixed
