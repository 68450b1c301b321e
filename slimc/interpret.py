"""What the IR means, runnable: a `Model` evaluated in float64 NumPy.

This is the definition that every pass must keep (to 1e-9) and that the emitted ONNX model must reach in float32. Nothing
here is fast on purpose.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from slimc.ir import Attention, Block, Classifier, Constant, Embedding, FloatArray, Head, LayerNorm, Linear, Mlp, Model

Float64 = npt.NDArray[np.float64]
_ERF = np.frompyfunc(math.erf, 1, 1)


def interpret(model: Model, images: FloatArray) -> Float64:
    """Logits [B, classes] of `images` [B, 3, height, width]."""
    x = embed(model.embedding, np.asarray(images, np.float64))
    for block in model.blocks:
        x = run_block(block, x)
    return classify(model.classifier, x)


def embed(embedding: Embedding, images: Float64) -> Float64:
    """The first stream [B, P + patches, C]."""
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


def run_block(block: Block, x: Float64) -> Float64:
    """The stream after one block."""
    live = np.arange(x.shape[1]) if block.live is None else block.live
    kept = x[:, live]
    if isinstance(block.attention, Attention):
        kept = kept + attend(block.attention, x)[:, live]
    elif isinstance(block.attention, Constant):
        kept = kept + block.attention.vector
    if isinstance(block.mlp, Mlp):
        kept = kept + feed_forward(block.mlp, kept)
    elif isinstance(block.mlp, Constant):
        kept = kept + block.mlp.vector
    return kept


def attend(attention: Attention, x: Float64) -> Float64:
    """What the attention branch adds to every row of `x`."""
    n = _visible(normalise(attention.norm, x), attention.token_mask, attention.rows)
    keys = np.arange(x.shape[1]) if attention.rows is None else attention.rows
    branch = np.zeros_like(x)
    for head in attention.heads:
        branch = branch + _attend_head(head, n, keys, attention.scale, attention.ghosts)
    if attention.output_bias is not None:
        branch = branch + attention.output_bias
    return branch * attention.residual_scale


def _attend_head(head: Head, n: Float64, keys: Any, scale: float, ghosts: int) -> Float64:  # noqa: ANN401
    mask = 1.0 if head.mask is None else head.mask.astype(np.float64)
    q, k, v = (apply(linear, n) * mask for linear in (head.query, head.key, head.value))
    scores = q @ k[:, keys].transpose(0, 2, 1) * scale
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


def classify(classifier: Classifier, x: Float64) -> Float64:
    """Logits [B, classes] of the last stream."""
    logits = np.zeros((len(x), classifier.heads[0].weight.shape[0]))
    for row, head in zip(classifier.rows, classifier.heads, strict=True):
        features = normalise(classifier.norm, x[:, row])
        if classifier.pre_logits is not None:
            features = np.tanh(apply(classifier.pre_logits, features))
        logits = logits + apply(head, features)
    return logits * classifier.scale


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
