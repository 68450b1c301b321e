"""Attention of very few queries, with the key and value matrices absorbed into them.

    scores   q (n Wk^T)^T = (q Wk) n^T            per head: [Nq, d] [d, C] = [Nq, C], then against the rows n themselves
    mixing   p (n Wv^T)   = (p n) Wv^T             per head: [Nq, Nk] [Nk, C] = [Nq, C], then [C, dv]

Exact in real arithmetic. No key or value is ever computed: with Nk keys, the 2 Nk C d multiply-accumulates of a head become
2 Nq C (Nk + d). In the last block, where cls is the only query, that is a d-th of the work. Heads are padded to one
width, so that each product is one batched MatMul. Ghosts are zero rows of n.
"""

from __future__ import annotations

import math

import numpy as np

from slimc import ir
from slimc.emit.graph import GraphBuilder, Value, dims
from slimc.emit.projection import bias_of, ghost_bias
from slimc.emit.stream import Stream
from slimc.targets.plan import AttentionPlan


def emit_absorbed(
    graph: GraphBuilder, plan: AttentionPlan, normalised: Stream, name: str
) -> tuple[Value, ir.FloatArray]:
    """What the heads mix [B * Nq, H * d], and the output projection's weight [C, H * d] that takes it."""
    attention, batch = plan.node, normalised.batch
    heads, width = len(attention.heads), plan.head_width
    dim = dims(normalised.matrix)[1]
    query_rows = normalised.take(graph, plan.query_rows, f"{name}.queries")
    queries = _queries(graph, plan, query_rows, name)
    key = graph.parameter(f"{name}.k.weight", np.stack([_padded(head.key.weight, width) for head in attention.heads]))
    absorbed = graph.matmul(queries, key, f"{name}.q.absorbed")
    absorbed = _by_image(graph, absorbed, batch, f"{name}.q.absorbed")
    ghosts = plan.ghost_rows
    rows = normalised.take(graph, plan.key_rows, f"{name}.keys").with_zeros(graph, ghosts, f"{name}.ghosts")
    matrices = rows.matrix if batch == 1 else rows.images(graph, f"{name}.keys.images")
    axes = (1, 0) if batch == 1 else (0, 2, 1)
    scores = graph.matmul(absorbed, graph.transpose(matrices, axes, f"{name}.keys.transposed"), f"{name}.scores")
    if ghosts != attention.ghosts:
        scores = graph.add(scores, ghost_bias(graph, dims(scores), attention.ghosts, ghosts), f"{name}.scores.ghosts")
    mixed = graph.matmul(graph.softmax(scores, f"{name}.softmax"), matrices, f"{name}.mixed")
    mixed = _by_head(graph, mixed, heads, batch, f"{name}.mixed")
    stacked = np.stack([_padded(head.value.weight, width).T for head in attention.heads])
    values = graph.matmul(mixed, graph.parameter(f"{name}.v.weight", stacked), f"{name}.values")
    total = math.prod(dims(values)) // (heads * width)
    flat = values if total == 1 else graph.transpose(values, (1, 0, 2), f"{name}.merged")
    output = np.concatenate([_padded(head.output.T, width).T for head in attention.heads], axis=1)
    assert output.shape == (dim, heads * width)
    return graph.reshape(flat, (total, heads * width), f"{name}.flat"), output


def _queries(graph: GraphBuilder, plan: AttentionPlan, query_rows: Stream, name: str) -> Value:
    """Queries [H, B * Nq, d]."""
    heads, width = plan.node.heads, plan.head_width
    weight = graph.parameter(f"{name}.q.weight", np.concatenate([_padded(h.query.weight, width) for h in heads]))
    bias = None
    if any(head.query.bias is not None for head in heads):
        padded = np.concatenate([_padded(bias_of(head.query), width) for head in heads])
        bias = graph.parameter(f"{name}.q.bias", padded)
    flat = graph.gemm(query_rows.matrix, weight, bias, f"{name}.q.flat")
    rows = dims(flat)[0]
    if rows == 1:
        return graph.reshape(flat, (len(heads), 1, width), f"{name}.q")
    split = graph.reshape(flat, (rows, len(heads), width), f"{name}.q.split")
    return graph.transpose(split, (1, 0, 2), f"{name}.q")


def _by_image(graph: GraphBuilder, x: Value, batch: int, name: str) -> Value:
    """[H, B * Nq, C] as [B, H * Nq, C], without the first axis at batch size 1."""
    heads, rows, dim = dims(x)
    if batch == 1:
        return graph.reshape(x, (heads * rows, dim), f"{name}.rows")
    split = graph.reshape(x, (heads, batch, rows // batch, dim), f"{name}.split")
    turned = graph.transpose(split, (1, 0, 2, 3), f"{name}.turned")
    return graph.reshape(turned, (batch, heads * rows // batch, dim), f"{name}.rows")


def _by_head(graph: GraphBuilder, x: Value, heads: int, batch: int, name: str) -> Value:
    """What `_by_image` made, as [H, B * Nq, C] again."""
    *_, rows, dim = dims(x)
    if batch == 1:
        return graph.reshape(x, (heads, rows // heads, dim), f"{name}.heads")
    split = graph.reshape(x, (batch, heads, rows // heads, dim), f"{name}.split")
    turned = graph.transpose(split, (1, 0, 2, 3), f"{name}.turned")
    return graph.reshape(turned, (heads, batch * rows // heads, dim), f"{name}.heads")


def _padded(array: ir.FloatArray, width: int) -> ir.FloatArray:
    """`array` with zeros behind its first axis, up to `width`."""
    return np.pad(array, [(0, width - len(array)), *[(0, 0)] * (array.ndim - 1)])
