"""What the IR means, runnable: a `Model` evaluated in float64 NumPy.

This is the definition that every pass must keep (to 1e-9) and that the emitted ONNX model must reach in float32. Nothing
here is fast on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

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
    Gates,
    Head,
    IndexArray,
    Mlp,
    Model,
    SoftSplit,
    key_rows,
    live_rows,
)
from slimc.ir.interpret.gates import Decisions, channel_gates, decide, undecided
from slimc.ir.interpret.linear import Float64, apply, gelu, normalise
from slimc.ir.interpret.stem import split_softly
from slimc.ir.interpret.tokens import Stream, kept_patches, select_tokens


@dataclass(frozen=True, eq=False)
class Trace:
    """Logits [B, classes]; the patches that every selection kept, ascending, [B, K] each; what every block decided."""

    logits: Float64
    kept: tuple[IndexArray, ...]
    decisions: tuple[Decisions, ...] = ()


def interpret(model: Model, images: FloatArray) -> Float64:
    """Logits [B, classes] of `images` [B, channels, height, width]."""
    return trace(model, images).logits


def trace(model: Model, images: FloatArray) -> Trace:
    """Logits of `images` [B, channels, height, width], and what was selected on the way."""
    stream = start(model, np.asarray(images, np.float64))
    kept, decisions = [], []
    for block in model.blocks:
        if block.select is not None:
            stream = select_tokens(block.select, stream)
            kept.append(kept_patches(stream))
        decisions.append(decide(block.gates, stream.rows, model.prefix) if block.gates else undecided(stream.rows))
        rows = run_block(block, stream.rows, stream.kept, decisions[-1])
        live = slice(None) if block.live is None else block.live
        stream = Stream(rows, stream.patches[:, live], stream.kept[:, live])
    patches = stream.kept & (stream.patches >= 0)
    return Trace(classify(model.classifier, stream.rows, patches), tuple(kept), tuple(decisions))


def start(model: Model, images: Float64) -> Stream:
    """The first stream, every row kept."""
    rows = embed(model.embedding, images)
    patches = model.embedding.patch.patches
    if patches is None:
        patches = np.arange(rows.shape[1] - model.prefix)
    shape = rows.shape[:2]
    return Stream(rows, np.broadcast_to(np.r_[np.arange(-model.prefix, 0), patches], shape), np.ones(shape, bool))


def embed(embedding: Embedding, images: Float64) -> Float64:
    """The first stream [B, P + patches, C]."""
    for stage in embedding.stem:
        images = split_softly(stage, images) if isinstance(stage, SoftSplit) else convolve(stage, images)
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
    """Patches [B, patches, channels * height * width] of `images`, row-major, channels first within a patch."""
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


def run_block(block: Block, x: Float64, kept: BoolArray | None = None, decided: Decisions | None = None) -> Float64:
    """The rows after one block; `kept` [B, N] are its attention's keys, none for all, `decided` its decisions, if any."""
    decided, gates = decided or undecided(x), block.gates or Gates()
    live = live_rows(block, x.shape[1])
    y = x[:, live]
    if isinstance(block.attention, Attention):
        added = attend(block.attention, x, kept, decided, gates) * decided.tokens[:, :, None]
        y = y + added[:, live] * decided.attention[:, None, None]
    elif isinstance(block.attention, Constant):
        y = y + block.attention.vector
    if isinstance(block.mlp, Mlp):
        used = decided.tokens[:, live, None] if gates.tokens_gate_mlp else 1.0
        y = y + feed_forward(block.mlp, y, decided) * used * decided.mlp[:, None, None]
    elif isinstance(block.mlp, Constant):
        y = y + block.mlp.vector
    return y


def attend(
    attention: Attention,
    x: Float64,
    kept: BoolArray | None = None,
    decided: Decisions | None = None,
    gates: Gates | None = None,
) -> Float64:
    """What the attention branch adds to every row of `x` that is used; `kept` [B, N] are the rows that may be keys."""
    decided, gates = decided or undecided(x), gates or Gates()
    n = _visible(normalise(attention.norm, x), attention.token_mask, attention.rows)
    keys = key_rows(attention, x.shape[1])
    seen = _sight(decided.tokens, kept)[:, :, keys]
    branch = np.zeros_like(x)
    for head in attention.heads:
        on = 1.0 if head.gate is None else decided.heads[:, head.gate, None, None]
        mixed, value = _mix(head, n, keys, seen, attention)
        off = value * (1.0 - on) if gates.off_heads == "value" else 0.0
        branch = branch + (mixed * on + off) @ head.output.astype(np.float64).T
    if attention.output_bias is not None:
        branch = branch + attention.output_bias
    return branch * attention.residual_scale


def _sight(tokens: Float64, kept: BoolArray | None) -> BoolArray:
    """Which row sees which [B, N, N]: a token that is not used is seen by itself only, and nobody sees a row not kept."""
    sight = (tokens[:, :, None] * tokens[:, None, :] + np.eye(tokens.shape[1])) > 0
    return sight if kept is None else sight & kept[:, None, :]


def _mix(head: Head, n: Float64, keys: IndexArray, seen: BoolArray, attention: Attention) -> tuple[Float64, Float64]:
    """A head's mixed values, and its values."""
    ghosts = attention.ghosts
    mask = 1.0 if head.mask is None else head.mask.astype(np.float64)
    q, k, v = (apply(linear, n) * mask for linear in (head.query, head.key, head.value))
    scores = np.where(seen, q @ k[:, keys].transpose(0, 2, 1) * attention.scale, -np.inf)
    nothing = np.zeros((1, 1, n.shape[2]))
    ghost_key, ghost_value = (apply(linear, nothing) * mask for linear in (head.key, head.value))
    ghost_scores = q @ ghost_key.transpose(0, 2, 1) * attention.scale if ghosts else np.full((*q.shape[:2], 1), -np.inf)
    # Subtracting the largest score, ghosts included, keeps exp in range.
    peak = np.maximum(scores.max(-1, keepdims=True, initial=-np.inf), ghost_scores)
    weights, ghost_weight = np.exp(scores - peak), ghosts * np.exp(ghost_scores - peak)
    mixed: Float64 = weights @ v[:, keys] + ghost_weight * ghost_value
    return mixed / (weights.sum(-1, keepdims=True) + ghost_weight), v


def feed_forward(mlp: Mlp, x: Float64, decided: Decisions | None = None) -> Float64:
    """What the FFN branch adds to every row of `x`."""
    n = _visible(normalise(mlp.norm, x), mlp.token_mask, mlp.rows)
    if mlp.inputs is not None:
        n = n[:, :, mlp.inputs]
    hidden = gelu(apply(mlp.up, n * channel_gates(mlp.input_gates, decided)))
    if mlp.mask is not None:
        hidden = hidden * mlp.mask
    return apply(mlp.down, hidden * channel_gates(mlp.unit_gates, decided)) * mlp.residual_scale


def classify(classifier: Classifier, x: Float64, patches: BoolArray | None = None) -> Float64:
    """Logits [B, classes] of the last rows [B, N, C]; an auxiliary head reads those that `patches` [B, N] marks."""
    logits = np.zeros((len(x), classifier.heads[0].weight.shape[0]))
    for row, head in zip(classifier.rows, classifier.heads, strict=True):
        features = normalise(classifier.norm, x[:, row])
        if classifier.pre_logits is not None:
            features = np.tanh(apply(classifier.pre_logits, features))
        logits = logits + apply(head, features)
    logits = logits * classifier.scale
    if classifier.auxiliary is not None:
        assert patches is not None
        each = apply(classifier.auxiliary, normalise(classifier.norm, x))
        logits = logits + np.where(patches[..., None], each, -np.inf).max(1)
    return logits


def _visible(n: Float64, mask: FloatArray | None, rows: Any | None) -> Float64:  # noqa: ANN401
    if mask is not None:
        n = n * mask[:, None]
    if rows is None:
        return n
    seen = np.zeros(n.shape[1])
    seen[rows] = 1.0
    return n * seen[:, None]
