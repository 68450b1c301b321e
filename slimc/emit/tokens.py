"""Emission of token selection: scores, one TopK, one Gather of rows.

The prefix rows are scored too, with a constant added that no patch can reach. So they come first of every TopK, and neither
the stream nor its indices need cutting apart. What the context of an image adds to the first layer of the scorer's MLP is
computed once for the image and not for every row: [local, context] W^T = local Wl^T + context Wc^T.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from slimc import ir
from slimc.emit.activations import gelu
from slimc.emit.graph import GraphBuilder, Value, dims
from slimc.emit.norms import emitted_norm
from slimc.emit.stream import Stream

# Subtracted from an attention score it leaves a softmax weight of exactly zero, and it is a float16 number.
_DEPTH = 3e4


@dataclass(frozen=True)
class Kept:
    """Rows that a selection without `drop` left visible: `rows` [B, N] is 1 for them, else 0; `count` are patches.

    `bias` [B, 1, 1, N], 0 or far below, hides the others when it is added to attention scores.
    """

    rows: Value
    bias: Value
    count: int


def emit_select(
    graph: GraphBuilder, select: ir.SelectTokens, stream: Stream, kept: Kept | None, block: str
) -> tuple[Stream, Kept | None]:
    """The stream after a selection, and which of its rows are visible where they did not leave."""
    name, batch, rows = f"{block}.select", stream.batch, stream.rows
    size = min(rows, select.prefix + select.keep)
    scores = graph.reshape(_scores(graph, select, stream, kept, name), (batch, rows), f"{name}.scores")
    _, chosen = graph.top_k(scores, size, f"{name}.kept")
    if select.drop:
        return _gather(graph, stream, chosen, name), None
    ones = graph.constant(np.ones((batch, size), np.float32), "ones")
    zeros = graph.constant(np.zeros((batch, rows), np.float32), "zeros")
    mask = graph.op("ScatterElements", [zeros, chosen, ones], f"{name}.mask", (batch, rows), {"axis": 1})
    count = size - select.prefix
    if kept is not None:
        # Where fewer are left than are to be kept, the TopK reaches into those that went before.
        mask, count = graph.mul(mask, kept.rows, f"{name}.still"), min(count, kept.count)
    bias = graph.reshape(_switch(graph, mask, _DEPTH, f"{name}.hiding"), (batch, 1, 1, rows), f"{name}.bias")
    return stream, Kept(mask, bias, count)


def _gather(graph: GraphBuilder, stream: Stream, chosen: Value, name: str) -> Stream:
    """The chosen rows [B, n] of every image."""
    batch, size = dims(chosen)
    if batch > 1:
        first = graph.constant(np.arange(batch, dtype=np.int64)[:, None] * stream.rows, "first")
        chosen = graph.op("Add", [chosen, first], f"{name}.positions", (batch, size), dtype=oir.DataType.INT64)
    flat = graph.reshape(chosen, (batch * size,), f"{name}.flat")
    shape = (batch * size, dims(stream.matrix)[1])
    return stream.replace(graph.op("Gather", [stream.matrix, flat], f"{name}.rows", shape, {"axis": 0}))


def _scores(graph: GraphBuilder, select: ir.SelectTokens, stream: Stream, kept: Kept | None, name: str) -> Value:
    """Scores [B * N, 1]: rising with what they rank, prefix rows above all patches, hidden rows below all visible ones."""
    scorer = select.scorer
    n = emitted_norm(graph, scorer.norm, f"{name}.in_conv.0")(graph, stream.matrix, f"{name}.norm")
    local = gelu(graph, graph.linear(n, scorer.local, f"{name}.local"), f"{name}.local.act")
    context = gelu(graph, graph.linear(n, scorer.context, f"{name}.context"), f"{name}.context.act")
    mean = _mean(graph, stream.replace(context), select.prefix, kept, name)
    hidden = _first_layer(graph, scorer.layers[0], stream.replace(local), mean, name)
    for i, layer in enumerate(scorer.layers[1:-1], 1):
        hidden = graph.linear(gelu(graph, hidden, f"{name}.out_conv.{i}.act"), layer, f"{name}.out_conv.{i}")
    hidden = gelu(graph, hidden, f"{name}.out_conv.act")
    step = 2.0 * score_bound(scorer) + 1.0
    offsets = np.zeros(stream.rows)
    offsets[: select.prefix] = step * np.arange(select.prefix, 0, -1)
    offset = stream.column(graph, offsets)
    last = scorer.layers[-1]
    if len(last.weight) == 1 and last.bias is None and kept is None:
        return graph.gemm(hidden, graph.parameter(f"{name}.score.weight", last.weight), offset, f"{name}.score")
    scores = graph.add(_single(graph, last, hidden, name), offset, f"{name}.score.prefix")
    if kept is None:
        return scores
    # Exactly 0 for visible rows, whose scores must not be rounded.
    lowered = _switch(graph, kept.rows, 2.0 * step, f"{name}.score.hiding")
    return graph.add(scores, graph.reshape(lowered, dims(scores), f"{name}.score.hidden"), f"{name}.score.visible")


def _switch(graph: GraphBuilder, rows: Value, depth: float, name: str) -> Value:
    """0 where `rows` is 1, -depth where it is 0."""
    return graph.add(graph.scale(rows, depth, f"{name}.scaled"), graph.constant(np.float32(-depth)), name)


def _single(graph: GraphBuilder, last: ir.Linear, hidden: Value, name: str) -> Value:
    """One score a row: the last layer's only output, or keep - drop of its two."""
    logits = graph.linear(hidden, last, f"{name}.score")
    if dims(logits)[1] == 1:
        return logits
    keep, drop = graph.split(logits, [1, 1], 1, [f"{name}.score.keep", f"{name}.score.drop"])
    return graph.op("Sub", [keep, drop], f"{name}.score.difference", dims(keep))


def _mean(graph: GraphBuilder, context: Stream, prefix: int, kept: Kept | None, name: str) -> Value:
    """The mean [B, C/2] over the patches that are kept, as a product with their weights."""
    batch, rows, width = context.batch, context.rows, dims(context.matrix)[1]
    share = np.zeros((1, rows) if batch == 1 else (batch, 1, rows), np.float32)
    share[..., prefix:] = 1.0 / (rows - prefix if kept is None else kept.count)
    weights = graph.constant(share, "share")
    if kept is not None:
        weights = graph.mul(weights, graph.reshape(kept.rows, share.shape, f"{name}.counted"), f"{name}.share")
    if batch == 1:
        return graph.matmul(weights, context.matrix, f"{name}.mean")
    mean = graph.matmul(weights, context.images(graph, f"{name}.context.images"), f"{name}.means")
    return graph.reshape(mean, (batch, width), f"{name}.mean")


def _first_layer(graph: GraphBuilder, layer: ir.Linear, local: Stream, mean: Value, name: str) -> Value:
    """The scorer's first layer [B * N, out]; what the mean adds to it is the bias of its image."""
    name = f"{name}.out_conv.0"
    split = dims(local.matrix)[1]
    shared = graph.linear(mean, ir.Linear(layer.weight[:, split:], layer.bias), f"{name}.context")
    weight = graph.parameter(f"{name}.local.weight", layer.weight[:, :split])
    if local.batch == 1:
        return graph.gemm(local.matrix, weight, shared, f"{name}.local")
    images = local.replace(graph.gemm(local.matrix, weight, None, f"{name}.local")).images(graph, f"{name}.images")
    each = graph.reshape(shared, (local.batch, 1, dims(shared)[1]), f"{name}.context.images")
    return graph.reshape(graph.add(images, each, f"{name}.sum"), (dims(local.matrix)[0], dims(shared)[1]), name)


def score_bound(scorer: ir.TokenScorer) -> float:
    """A number that no score exceeds in magnitude, whatever the image.

    Lengths of vectors, layer by layer: a normalised row of C entries is at most sqrt(C) long before its weight and bias,
    |gelu(x)| <= |x|, and a mean of rows is no longer than the longest.
    """
    dim = len(scorer.norm.weight)
    parts = [_behind_norm(linear, scorer.norm) for linear in (scorer.local, scorer.context)]
    length = float(np.linalg.norm([_length(part, dim**0.5) for part in parts]))
    for layer in scorer.layers:
        length = _length(layer, length)
    # A difference of two logits may be longer than both.
    return 2.0 * length


def _behind_norm(linear: ir.Linear, norm: ir.LayerNorm) -> ir.Linear:
    """`linear` and the weight and bias before it in one."""
    shift = linear.weight.astype(np.float64) @ norm.bias
    return ir.Linear(linear.weight * norm.weight, shift if linear.bias is None else shift + linear.bias)


def _length(linear: ir.Linear, length: float) -> float:
    """No output of `linear` is longer than this where no input is longer than `length`.

    The largest singular value s of W is bounded by ||(W W^T)^2||^(1/4) in the Frobenius norm, the root of the sum of s^8.
    """
    weight = linear.weight.astype(np.float64)
    squared = weight @ weight.T
    gain = np.linalg.norm(squared @ squared) ** 0.25
    return float(gain * length + (0.0 if linear.bias is None else np.linalg.norm(linear.bias)))
