"""Emission of attention pooling by a learnt query: one query an image and head, the same for all images.

Heads of equal widths that follow each other are computed together. Absorbed, values are mixed before they are projected:

    scores   n (q Wk)^T     all heads at once: [N, C] [C, H]
    mixing   (a n) Wv^T     per head: [N] [N, C] = [C], then [C, dv]
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from slimc import ir
from slimc.emit.graph import GraphBuilder, Value, dims
from slimc.emit.mlp import hidden_units
from slimc.emit.norms import normalise
from slimc.emit.projection import bias_of, stacked
from slimc.emit.stream import Stream
from slimc.targets.plan import latent_runs, without_empty_heads

NAME = "attn_pool"
_Run = tuple[ir.LatentHead, ...]


def emit_latent_pool(graph: GraphBuilder, pool: ir.LatentPool, rows: Stream) -> Value:
    """Features [B, C] of the rows that `pool` reads."""
    y = _attend(graph, without_empty_heads(pool), rows)
    mlp = pool.mlp
    if mlp is None:
        return y
    if len(mlp.up.weight) == 0:
        bias = mlp.down.bias
        return y if bias is None else graph.add(y, graph.parameter(f"{NAME}.mlp.fc2.bias", bias), f"{NAME}.residual")
    hidden = hidden_units(graph, mlp, normalise(graph, y, mlp.norm, f"{NAME}.norm"), f"{NAME}.mlp")
    return graph.add(y, graph.linear(hidden, mlp.down, f"{NAME}.mlp.fc2"), f"{NAME}.residual")


def _attend(graph: GraphBuilder, pool: ir.LatentPool, rows: Stream) -> Value:
    """What the heads yield [B, C]."""
    if not pool.heads:
        dim = dims(rows.matrix)[1]
        bias = np.zeros(dim) if pool.output_bias is None else pool.output_bias
        return graph.constant(np.tile(bias, (rows.batch, 1)).astype(np.float32), f"{NAME}.proj")
    mixed = _mix_absorbed(graph, pool, rows) if pool.absorbed else _mix(graph, pool, rows)
    joined = graph.concat(mixed, 1, f"{NAME}.joined")
    weight = np.concatenate([head.output for head in pool.heads], axis=1)
    return graph.linear(joined, ir.Linear(weight, pool.output_bias), f"{NAME}.proj")


def _mix(graph: GraphBuilder, pool: ir.LatentPool, rows: Stream) -> list[Value]:
    """What the heads of every run mix: [B, H * dv]."""
    found, batch = latent_runs(pool), rows.batch
    linears = [[getattr(head, kind) for head in run] for kind in ("key", "value") for run in found]
    joined = rows.replace(graph.linear(rows.matrix, stacked(list(itertools.chain(*linears))), f"{NAME}.kv"))
    names = [f"{NAME}.{kind}.{i}" for kind in "kv" for i in range(len(found))]
    widths = [sum(len(linear.weight) for linear in group) for group in linears]
    columns = graph.split(joined.images(graph, f"{NAME}.kv.images"), widths, 2, [f"{name}.flat" for name in names])
    mixed = []
    for i, run in enumerate(found):
        key, value = columns[i], columns[len(found) + i]
        scores = _scores(graph, pool, run, key, f"{NAME}.q.{i}")
        value = _by_head(graph, value, len(run), (0, 2, 1, 3), f"{NAME}.v.{i}")
        weights = graph.softmax(scores, f"{NAME}.{i}.softmax")
        each = graph.matmul(weights, value, f"{NAME}.{i}.mixed")
        flat = graph.reshape(each, (batch, math.prod(dims(each)[1:])), f"{NAME}.{i}.mixed.flat")
        mixed.append(_value_masked(graph, flat, run, f"{NAME}.{i}.mask"))
    return mixed


def _scores(graph: GraphBuilder, pool: ir.LatentPool, run: _Run, key: Value, name: str) -> Value:
    """Scores [B, H, 1, N] of a run's heads, of keys [B, N, H * d]; a mask of q and k multiplies the query twice."""
    query = graph.parameter(f"{name}.latent", np.stack([head.query for head in run])[:, None])
    if any(head.mask is not None for head in run):
        masks = [np.ones(len(head.query)) if head.mask is None else head.mask for head in run]
        squares = np.square(np.stack(masks)[:, None]).astype(np.float32)
        query = graph.mul(query, graph.constant(squares, "mask"), f"{name}.mask")
    if pool.scale != 1.0:
        query = graph.scale(query, pool.scale, f"{name}.scale")
    key = _by_head(graph, key, len(run), (0, 2, 3, 1), f"{name}.keys")
    queries = graph.reshape(query, (1, *dims(query)), f"{name}.queries")
    shape = (*dims(key)[:2], 1, dims(key)[3])
    return graph.op("MatMul", [queries, key], f"{name}.scores", shape)


def _by_head(graph: GraphBuilder, x: Value, heads: int, axes: tuple[int, ...], name: str) -> Value:
    """`x` [B, N, H * d] as [B, N, H, d] with its axes permuted."""
    batch, rows, width = dims(x)
    return graph.transpose(graph.reshape(x, (batch, rows, heads, width // heads), f"{name}.split"), axes, name)


def _value_masked(graph: GraphBuilder, x: Value, run: _Run, name: str) -> Value:
    """Mixed values [B, H * dv] times the masks of the values, which may as well come after the mixing."""
    if all(head.value_mask is None for head in run):
        return x
    masks = [np.ones(len(head.value.weight)) if head.value_mask is None else head.value_mask for head in run]
    return graph.mul(x, graph.constant(np.concatenate(masks).astype(np.float32), "mask"), name)


def _mix_absorbed(graph: GraphBuilder, pool: ir.LatentPool, rows: Stream) -> list[Value]:
    """What the heads of every run mix: [B, H * dv], their values projected last."""
    batch = rows.batch
    weights = graph.softmax(_absorbed_scores(graph, pool, rows), f"{NAME}.softmax")
    images = rows.images(graph, f"{NAME}.images")
    mixed = graph.transpose(graph.matmul(weights, images, f"{NAME}.mixed"), (1, 0, 2), f"{NAME}.mixed.heads")
    found = latent_runs(pool)
    parts = graph.split(mixed, [len(run) for run in found], 0, [f"{NAME}.mixed.{i}" for i in range(len(found))])
    values = []
    for i, (run, part) in enumerate(zip(found, parts, strict=True)):
        name, width = f"{NAME}.v.{i}", len(run[0].value.weight)
        weight = graph.parameter(f"{name}.weight", np.stack([head.value.weight.T for head in run]))
        value = graph.transpose(graph.matmul(part, weight, f"{name}.heads"), (1, 0, 2), f"{name}.images")
        flat = graph.reshape(value, (batch, len(run) * width), f"{name}.flat")
        if any(head.value.bias is not None for head in run):
            # The weights of a softmax sum to 1.
            bias = graph.parameter(f"{name}.bias", np.concatenate([bias_of(head.value) for head in run]))
            flat = graph.add(flat, bias, f"{name}.biased")
        values.append(_value_masked(graph, flat, run, f"{name}.mask"))
    return values


def _absorbed_scores(graph: GraphBuilder, pool: ir.LatentPool, rows: Stream) -> Value:
    """Scores [B, H, N]: the product of the rows with what is left of every head's query and key."""
    weight = np.stack([absorbed_key(head) for head in pool.heads])
    scores = graph.linear(rows.matrix, ir.Linear(weight), f"{NAME}.k")
    if pool.scale != 1.0:
        scores = graph.scale(scores, pool.scale, f"{NAME}.k.scale")
    images = graph.reshape(scores, (rows.batch, rows.rows, len(pool.heads)), f"{NAME}.scores")
    return graph.transpose(images, (0, 2, 1), f"{NAME}.scores.heads")


def absorbed_key(head: ir.LatentHead) -> ir.FloatArray:
    """The weights [C] of a head's scores. A bias would add the same to all of them, and a softmax does not see that."""
    query = head.query.astype(np.float64)
    query = query if head.mask is None else query * np.square(head.mask)
    return query @ head.key.weight
