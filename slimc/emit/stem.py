"""Emission of T2T-ViT's stem: windows by two gathers, linear attention by two matrix products.

The windows of a padded map [B, E, H, W] are rows[y, i] = y * stride + i, gathered along the height, then the same along
the width. Numerator and denominator of the attention come out of one product, phi(q) (phi(k)^T [v, 1]).
"""

from __future__ import annotations

import math

import numpy as np

from slimc import ir
from slimc.emit.activations import gelu
from slimc.emit.graph import GraphBuilder, Value, dims
from slimc.emit.norms import normalise
from slimc.emit.projection import stacked


def emit_soft_split(graph: GraphBuilder, stage: ir.SoftSplit, images: Value, i: int) -> Value:
    """The `i`-th stage of a stem, counted from 1: the map [B, D, h, w] that it makes of the map `images` [B, E, H, W]."""
    name = f"tokens_to_token.stage{i}"
    windows = _windows(graph, stage, images, name)
    batch, height, width, channels = dims(windows)
    if stage.performer is None:
        return graph.transpose(windows, (0, 3, 1, 2), f"{name}.map")
    rows = graph.reshape(windows, (batch * height * width, channels), f"{name}.rows")
    rows = _perform(graph, stage.performer, rows, batch, name)
    grid = graph.reshape(rows, (batch, height, width, dims(rows)[1]), f"{name}.grid")
    return graph.transpose(grid, (0, 3, 1, 2), f"{name}.map")


def _windows(graph: GraphBuilder, stage: ir.SoftSplit, images: Value, name: str) -> Value:
    """The windows of the map `images`: [B, h, w, channels * side * side]."""
    batch, channels, height, width = dims(images)
    pad, side = stage.padding, stage.side
    if pad:
        amounts = graph.constant(np.array([0, 0, pad, pad, 0, 0, pad, pad]), "pads")
        shape = (batch, channels, height + 2 * pad, width + 2 * pad)
        images = graph.op("Pad", [images, amounts], f"{name}.padded", shape)
    down, across = (1 + (n + 2 * pad - side) // stage.stride for n in (height, width))
    rows = _positions(graph, images, 2, down, stage, f"{name}.vertical")
    cells = _positions(graph, rows, 4, across, stage, f"{name}.windows")
    ordered = graph.transpose(cells, (0, 2, 4, 1, 3, 5), f"{name}.ordered")
    return graph.reshape(ordered, (batch, down, across, channels * side * side), f"{name}.unfolded")


def _positions(graph: GraphBuilder, x: Value, axis: int, count: int, stage: ir.SoftSplit, name: str) -> Value:
    """`x` with `axis` replaced by two: window and place in the window."""
    indices = np.arange(count)[:, None] * stage.stride + np.arange(stage.side)
    shape = (*dims(x)[:axis], count, stage.side, *dims(x)[axis + 1 :])
    return graph.op("Gather", [x, graph.constant(indices, "windows")], name, shape, {"axis": axis})


def _perform(graph: GraphBuilder, performer: ir.Performer, x: Value, batch: int, name: str) -> Value:
    """The rows [B * N, D] that `performer` makes of rows [B * N, E]."""
    n = normalise(graph, x, performer.norm1, f"{name}.norm1")
    linears = (performer.key, performer.query, performer.value)
    width = performer.value.weight.shape[0]
    names = [f"{name}.key", f"{name}.query", f"{name}.value"]
    key, query, value = graph.split(graph.linear(n, stacked(linears), f"{name}.kqv"), [width] * 3, 1, names)
    features = graph.parameter(f"{name}.w", performer.features)
    mixed = _mix(graph, features, (key, query, value), batch, name)
    y = graph.add(value, graph.linear(mixed, performer.output, f"{name}.proj"), f"{name}.residual")
    n = normalise(graph, y, performer.norm2, f"{name}.norm2")
    hidden = gelu(graph, graph.linear(n, performer.up, f"{name}.mlp.0"), f"{name}.mlp.1")
    return graph.add(y, graph.linear(hidden, performer.down, f"{name}.mlp.2"), f"{name}.output")


def _mix(graph: GraphBuilder, features: Value, kqv: tuple[Value, Value, Value], batch: int, name: str) -> Value:
    """The attention's result [B * N, D]."""
    key, query, value = kqv
    (total, width), m = dims(value), dims(features)[0]
    rows = total // batch
    phi_key = graph.reshape(_phi(graph, features, key, f"{name}.phi_key"), (batch, rows, m), f"{name}.phi_key.images")
    phi_query = _phi(graph, features, query, f"{name}.phi_query")
    phi_query = graph.reshape(phi_query, (batch, rows, m), f"{name}.phi_query.images")
    ones = graph.constant(np.ones((batch, rows, 1), np.float32), "ones")
    values = graph.concat([graph.reshape(value, (batch, rows, width), f"{name}.images"), ones], 2, f"{name}.values")
    memory = graph.matmul(graph.transpose(phi_key, (0, 2, 1), f"{name}.phi_key.t"), values, f"{name}.memory")
    sums = graph.matmul(phi_query, memory, f"{name}.sums")
    numerator, denominator = graph.split(sums, [width, 1], 2, [f"{name}.numerator", f"{name}.denominator"])
    denominator = graph.add(denominator, graph.constant(np.float32(1e-8), "eps"), f"{name}.denominator.eps")
    mixed = graph.op("Div", [numerator, denominator], f"{name}.mixed", dims(numerator))
    return graph.reshape(mixed, (total, width), f"{name}.mixed.rows")


def _phi(graph: GraphBuilder, features: Value, u: Value, name: str) -> Value:
    """exp(features u - |u|^2 / 2) / sqrt(m): [rows, m]. The last factor goes into the exponent."""
    projected = graph.gemm(u, features, None, f"{name}.projected")
    axes = graph.constant(np.array([1]), "axes")
    squares = graph.op("ReduceSum", [graph.mul(u, u, f"{name}.square"), axes], f"{name}.norm", (dims(u)[0], 1))
    half = graph.scale(squares, 0.5, f"{name}.half")
    shift = graph.add(half, graph.constant(np.float32(0.5 * math.log(dims(features)[0]))), f"{name}.shift")
    exponent = graph.op("Sub", [projected, shift], f"{name}.exponent", dims(projected))
    return graph.op("Exp", [exponent], name, dims(projected))
