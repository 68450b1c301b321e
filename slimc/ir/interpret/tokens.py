"""What a selection of tokens means: the part of the interpreter that follows rows through it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slimc.ir import BoolArray, IndexArray, SelectTokens, TokenScorer
from slimc.ir.interpret.linear import Float64, apply, gelu, normalise


@dataclass(frozen=True, eq=False)
class Stream:
    """Rows [B, N, C], the patch each came from [B, N] (negative for prefix rows), and whether it is still kept [B, N]."""

    rows: Float64
    patches: IndexArray
    kept: BoolArray


def kept_patches(stream: Stream) -> IndexArray:
    """The patches that are kept, ascending, [B, K]."""
    seen = stream.kept & (stream.patches >= 0)
    return np.stack([np.sort(patches[mask]) for patches, mask in zip(stream.patches, seen, strict=True)])


def select_tokens(select: SelectTokens, stream: Stream) -> Stream:
    """The stream after a selection."""
    p = select.prefix
    kept = stream.kept[:, p:]
    best = np.argsort(-_ranks(select, stream), axis=1, kind="stable")[:, : select.keep]
    if not select.drop:
        chosen = np.zeros_like(kept)
        np.put_along_axis(chosen, best, values=True, axis=1)
        return replace(stream, kept=np.concatenate([stream.kept[:, :p], chosen & kept], axis=1))
    rows = np.concatenate([np.broadcast_to(np.arange(p), (len(best), p)), best + p], axis=1)
    return Stream(
        rows=np.take_along_axis(stream.rows, rows[..., None], 1),
        patches=np.take_along_axis(stream.patches, rows, 1),
        kept=np.take_along_axis(stream.kept, rows, 1),
    )


def selection_margin(select: SelectTokens, stream: Stream) -> Float64:
    """How surely a selection keeps what it keeps [B]: the gap between the last row kept and the first that is not, in
    standard deviations of the scores; infinite where it keeps all.
    """
    margins = []
    for score in _ranks(select, stream):
        ordered = -np.sort(-score[score > -np.inf])
        if select.keep >= len(ordered):
            margins.append(np.inf)
        else:
            with np.errstate(invalid="ignore"):  # equal scores, and those of images with NaN
                margins.append((ordered[select.keep - 1] - ordered[select.keep]) / ordered.std(ddof=1))
    return np.nan_to_num(np.array(margins, np.float64), posinf=np.inf)


def _ranks(select: SelectTokens, stream: Stream) -> Float64:
    """What the patch rows are ranked by [B, N]."""
    kept = stream.kept[:, select.prefix :]
    score = score_tokens(select.scorer, stream.rows[:, select.prefix :], kept)
    return np.where(kept, np.where(np.isnan(score), np.inf, score), -np.inf)


def score_tokens(scorer: TokenScorer, x: Float64, kept: BoolArray) -> Float64:
    """Scores [B, N] of the patch rows [B, N, C], of which `kept` [B, N] make the context."""
    n = normalise(scorer.norm, x)
    context = gelu(apply(scorer.context, n))
    mean = (context * kept[..., None]).sum(1, keepdims=True) / kept.sum(1)[:, None, None]
    y = np.concatenate([gelu(apply(scorer.local, n)), np.broadcast_to(mean, context.shape)], axis=-1)
    for layer in scorer.layers[:-1]:
        y = gelu(apply(layer, y))
    y = apply(scorer.layers[-1], y)
    # log softmax(y)[0], for two logits.
    return -np.logaddexp(0.0, y[..., 1] - y[..., 0]) if y.shape[-1] == 2 else y[..., 0]
