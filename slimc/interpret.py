"""What the IR means, runnable: a `Model` evaluated in float64 NumPy.

This is the definition that every pass must keep (to 1e-9) and that the emitted ONNX model must reach in float32. Nothing
here is fast on purpose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from slimc.ir import (
    Attention,
    BatchNorm,
    Block,
    BoolArray,
    Classifier,
    Constant,
    Convolution,
    Embedding,
    FloatArray,
    Head,
    IndexArray,
    LayerNorm,
    Linear,
    Mlp,
    Model,
    SelectTokens,
    TokenScorer,
)

Float64 = npt.NDArray[np.float64]
_ERF = np.frompyfunc(math.erf, 1, 1)


@dataclass(frozen=True, eq=False)
class Stream:
    """Rows [B, N, C], the patch each came from [B, N] (negative for prefix rows), and whether it is still kept [B, N]."""

    rows: Float64
    patches: IndexArray
    kept: BoolArray


@dataclass(frozen=True, eq=False)
class Trace:
    """Logits [B, classes], and the patches that every selection kept, ascending, [B, K] each."""

    logits: Float64
    kept: tuple[IndexArray, ...]


def interpret(model: Model, images: FloatArray) -> Float64:
    """Logits [B, classes] of `images` [B, 3, height, width]."""
    return trace(model, images).logits


def trace(model: Model, images: FloatArray) -> Trace:
    """Logits of `images` [B, 3, height, width], and what was selected on the way."""
    stream = start(model, np.asarray(images, np.float64))
    kept = []
    for block in model.blocks:
        if block.select is not None:
            stream = select_tokens(block.select, stream)
            kept.append(kept_patches(stream))
        rows = run_block(block, stream.rows, stream.kept)
        live = slice(None) if block.live is None else block.live
        stream = Stream(rows, stream.patches[:, live], stream.kept[:, live])
    return Trace(classify(model.classifier, stream.rows, stream.kept[:, model.prefix :]), tuple(kept))


def start(model: Model, images: Float64) -> Stream:
    """The first stream, every row kept."""
    rows = embed(model.embedding, images)
    patches = model.embedding.patch.patches
    if patches is None:
        patches = np.arange(rows.shape[1] - model.prefix)
    shape = rows.shape[:2]
    return Stream(rows, np.broadcast_to(np.r_[np.arange(-model.prefix, 0), patches], shape), np.ones(shape, bool))


def kept_patches(stream: Stream) -> IndexArray:
    """The patches that are kept, ascending, [B, K]."""
    seen = stream.kept & (stream.patches >= 0)
    return np.stack([np.sort(patches[mask]) for patches, mask in zip(stream.patches, seen, strict=True)])


def select_tokens(select: SelectTokens, stream: Stream) -> Stream:
    """The stream after a selection."""
    p = select.prefix
    kept = stream.kept[:, p:]
    score = score_tokens(select.scorer, stream.rows[:, p:], kept)
    score = np.where(kept, np.where(np.isnan(score), np.inf, score), -np.inf)
    best = np.argsort(-score, axis=1, kind="stable")[:, : select.keep]
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


def embed(embedding: Embedding, images: Float64) -> Float64:
    """The first stream [B, P + patches, C]."""
    for convolution in embedding.stem:
        images = convolve(convolution, images)
    weight = embedding.patch.weight.astype(np.float64)
    patches = cut_patches(images, weight.shape[2], weight.shape[3])
    if embedding.patch.patches is not None:
        patches = patches[:, embedding.patch.patches]
    patch_rows = patches @ weight.reshape(weight.shape[0], -1).T
    if embedding.patch.bias is not None:
        patch_rows = patch_rows + embedding.patch.bias
    if embedding.patch_position is not None:
        patch_rows = patch_rows + embedding.patch_position
    prefix = embedding.prefix.astype(np.float64)
    if embedding.prefix_position is not None:
        prefix = prefix + embedding.prefix_position
    return np.concatenate([np.broadcast_to(prefix, (len(images), *prefix.shape)), patch_rows], axis=1)


def cut_patches(images: Float64, height: int, width: int) -> Float64:
    """Patches [B, patches, 3 * height * width] of `images`, row-major, channels first within a patch."""
    batch, channels, rows, columns = images.shape
    grid = images.reshape(batch, channels, rows // height, height, columns // width, width)
    cells: Float64 = grid.transpose(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * height * width)
    return cells


def convolve(convolution: Convolution, images: Float64) -> Float64:
    """One convolution of the stem, with its normalisation and ReLU."""
    weight = convolution.weight.astype(np.float64)
    size, stride = weight.shape[2], convolution.stride
    border = (size // 2, size // 2)
    padded = np.pad(images, ((0, 0), (0, 0), border, border))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (2, 3))[:, :, ::stride, ::stride]
    y = np.einsum("bchwij,ocij->bohw", windows, weight, optimize=True)
    if convolution.bias is not None:
        y = y + convolution.bias[:, None, None]
    return np.maximum(y if convolution.norm is None else batch_normalise(convolution.norm, y), 0.0)


def batch_normalise(norm: BatchNorm, x: Float64) -> Float64:
    """Batch normalisation of [B, C, height, width] as in evaluation."""
    scale = norm.weight / np.sqrt(norm.variance.astype(np.float64) + norm.eps)
    return (x - norm.mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def run_block(block: Block, x: Float64, kept: BoolArray | None = None) -> Float64:
    """The rows after one block; `kept` [B, N] are the keys of its attention, none for all."""
    live = np.arange(x.shape[1]) if block.live is None else block.live
    y = x[:, live]
    if isinstance(block.attention, Attention):
        y = y + attend(block.attention, x, kept)[:, live]
    elif isinstance(block.attention, Constant):
        y = y + block.attention.vector
    if isinstance(block.mlp, Mlp):
        y = y + feed_forward(block.mlp, y)
    elif isinstance(block.mlp, Constant):
        y = y + block.mlp.vector
    return y


def attend(attention: Attention, x: Float64, kept: BoolArray | None = None) -> Float64:
    """What the attention branch adds to every row of `x`; `kept` [B, N] are the rows that may be keys, none for all."""
    n = _visible(normalise(attention.norm, x), attention.token_mask, attention.rows)
    keys = np.arange(x.shape[1]) if attention.rows is None else attention.rows
    hidden = None if kept is None else np.where(kept[:, None, keys], 0.0, -np.inf)
    branch = np.zeros_like(x)
    for head in attention.heads:
        branch = branch + _attend_head(head, n, keys, hidden, attention)
    if attention.output_bias is not None:
        branch = branch + attention.output_bias
    return branch * attention.residual_scale


def _attend_head(head: Head, n: Float64, keys: IndexArray, hidden: Float64 | None, attention: Attention) -> Float64:
    ghosts = attention.ghosts
    mask = 1.0 if head.mask is None else head.mask.astype(np.float64)
    q, k, v = (apply(linear, n) * mask for linear in (head.query, head.key, head.value))
    scores = q @ k[:, keys].transpose(0, 2, 1) * attention.scale + (0.0 if hidden is None else hidden)
    # A ghost is a zero key: its score is 0. Subtracting the largest score, ghosts included, keeps exp in range.
    peak = np.maximum(scores.max(-1, keepdims=True, initial=-np.inf), 0.0 if ghosts else -np.inf)
    weights = np.exp(scores - peak)
    weights = weights / (weights.sum(-1, keepdims=True) + ghosts * np.exp(-peak))
    branch: Float64 = weights @ v[:, keys] @ head.output.astype(np.float64).T
    return branch


def feed_forward(mlp: Mlp, x: Float64) -> Float64:
    """What the FFN branch adds to every row of `x`."""
    hidden = gelu(apply(mlp.up, _visible(normalise(mlp.norm, x), mlp.token_mask, mlp.rows)))
    if mlp.mask is not None:
        hidden = hidden * mlp.mask
    return apply(mlp.down, hidden) * mlp.residual_scale


def classify(classifier: Classifier, x: Float64, kept: BoolArray) -> Float64:
    """Logits [B, classes] of the last rows, of which the last ones, `kept` [B, patches], are patches to read."""
    logits = np.zeros((len(x), classifier.heads[0].weight.shape[0]))
    for row, head in zip(classifier.rows, classifier.heads, strict=True):
        features = normalise(classifier.norm, x[:, row])
        if classifier.pre_logits is not None:
            features = np.tanh(apply(classifier.pre_logits, features))
        logits = logits + apply(head, features)
    logits = logits * classifier.scale
    if classifier.auxiliary is not None:
        patches = normalise(classifier.norm, x[:, x.shape[1] - kept.shape[1] :])
        logits = logits + np.where(kept[..., None], apply(classifier.auxiliary, patches), -np.inf).max(1)
    return logits


def normalise(norm: LayerNorm, x: Float64) -> Float64:
    """LayerNorm over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    scaled: Float64 = centred / np.sqrt(variance + norm.eps) * norm.weight.astype(np.float64)
    return scaled + norm.bias


def apply(linear: Linear, x: Float64) -> Float64:
    """`linear` over the last axis."""
    y: Float64 = x @ linear.weight.astype(np.float64).T
    return y if linear.bias is None else y + linear.bias


def gelu(x: Float64) -> Float64:
    """Exact GELU: x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel, arXiv 1606.08415)."""
    erf: Float64 = _ERF(x / np.sqrt(2.0)).astype(np.float64)
    return x * 0.5 * (1.0 + erf)


def _visible(n: Float64, mask: FloatArray | None, rows: Any | None) -> Float64:  # noqa: ANN401
    if mask is not None:
        n = n * mask[:, None]
    if rows is None:
        return n
    seen = np.zeros(n.shape[1])
    seen[rows] = 1.0
    return n * seen[:, None]
