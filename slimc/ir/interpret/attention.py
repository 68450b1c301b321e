"""What the attention branch means, in float64 NumPy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from slimc.ir import Attention, BoolArray, FloatArray, Gates, Head, IndexArray, Linear, Norm, Rotation, key_rows
from slimc.ir.interpret.gates import Decisions, undecided
from slimc.ir.interpret.linear import Float64, apply, branch_scale, factor, normalise


def attend(
    attention: Attention,
    x: Float64,
    kept: BoolArray | None = None,
    decided: Decisions | None = None,
    gates: Gates | None = None,
) -> Float64:
    """What the attention branch adds to every row of `x` that is used; `kept` [B, N] are the rows that may be keys."""
    decided, gates = decided or undecided(x), gates or Gates()
    n = visible(normalise(attention.norm, x), attention.token_mask, attention.rows)
    keys = key_rows(attention, x.shape[1])
    seen = _sight(decided.tokens, kept)[:, :, keys]
    mixed = []
    for head in attention.heads:
        on = 1.0 if head.gate is None else decided.heads[:, head.gate, None, None]
        values, own = _mix(head, n, keys, seen, attention)
        mixed.append(values * on + (own * (1.0 - on) if gates.off_heads == "value" else 0.0))
    branch = np.zeros_like(x)
    for head, values in zip(attention.heads, _normalised(attention, mixed), strict=True):
        branch = branch + values @ head.output.astype(np.float64).T
    if attention.output_bias is not None:
        branch = branch + attention.output_bias
    return branch * branch_scale(attention.residual_scale, attention.layer_scale)


def _normalised(attention: Attention, mixed: list[Float64]) -> Iterator[Float64]:
    """What the heads mix, after the norm over all of it, by heads."""
    if attention.output_norm is None:
        yield from mixed
        return
    whole = normalise(attention.output_norm, np.concatenate(mixed, axis=-1))
    ends = np.cumsum([values.shape[-1] for values in mixed])
    for head, values in zip(attention.heads, np.split(whole, ends[:-1], axis=-1), strict=True):
        yield values * factor(head.value_mask)


def _sight(tokens: Float64, kept: BoolArray | None) -> BoolArray:
    """Which row sees which [B, N, N]: a token that is not used is seen by itself only, and nobody sees a row not kept."""
    sight = (tokens[:, :, None] * tokens[:, None, :] + np.eye(tokens.shape[1])) > 0
    return sight if kept is None else sight & kept[:, None, :]


def _mix(head: Head, n: Float64, keys: IndexArray, seen: BoolArray, attention: Attention) -> tuple[Float64, Float64]:
    """A head's mixed values, and its values."""
    ghosts = attention.ghosts
    q = _asked(head.query, n, head, attention.query_norm)
    k = _asked(head.key, n, head, attention.key_norm)
    v = apply(head.value, n) * factor(head.value_mask)
    scores = np.where(seen, q @ k[:, keys].transpose(0, 2, 1) * attention.scale, -np.inf)
    ghost_key, ghost_value = ghost_operands(attention, head)
    ghost_scores = (q @ ghost_key)[..., None] * attention.scale if ghosts else np.full((*q.shape[:2], 1), -np.inf)
    # Subtracting the largest score, ghosts included, keeps exp in range.
    peak = np.maximum(scores.max(-1, keepdims=True, initial=-np.inf), ghost_scores)
    weights, ghost_weight = np.exp(scores - peak), ghosts * np.exp(ghost_scores - peak)
    mixed: Float64 = weights @ v[:, keys] + ghost_weight * ghost_value
    return mixed / (weights.sum(-1, keepdims=True) + ghost_weight), v


def ghost_operands(attention: Attention, head: Head) -> tuple[Float64, Float64]:
    """Key [d_qk] and value [d_v] of a ghost: those of a zero row, which is not turned."""
    nothing = np.zeros((1, head.key.weight.shape[1]))
    key = normalise(attention.key_norm, apply(head.key, nothing) * factor(head.mask))
    return key[0], (apply(head.value, nothing) * factor(head.value_mask))[0]


def turns_key_bias(attention: Attention) -> bool:
    """Whether keys of zero rows are turned and not zero: then they differ from row to row."""
    return any(h.rotation is not None and ghost_operands(attention, h)[0].any() for h in attention.heads)


def _asked(linear: Linear, n: Float64, head: Head, norm: Norm | None) -> Float64:
    """Queries or keys [B, N, d_qk] of every row."""
    return turn(head.rotation, normalise(norm, apply(linear, n) * factor(head.mask)))


def turn(rotation: Rotation | None, x: Float64) -> Float64:
    """Queries or keys [..., N, d], turned by the positions of their rows."""
    if rotation is None:
        return x
    cos, sin = rotation.cos.astype(np.float64), rotation.sin.astype(np.float64)
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def visible(n: Float64, mask: FloatArray | None, rows: IndexArray | None) -> Float64:
    """The normalised rows [B, N, C] as a branch sees them: masked, and zero where they are not among its `rows`."""
    if mask is not None:
        n = n * mask[:, None]
    if rows is None:
        return n
    seen = np.zeros(n.shape[1])
    seen[rows] = 1.0
    return n * seen[:, None]
