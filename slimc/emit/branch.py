"""The last product of a branch, and its sum with the residual stream."""

from __future__ import annotations

from slimc import ir
from slimc.emit.graph import GraphBuilder, Value
from slimc.emit.stream import Stream


def last_product(graph: GraphBuilder, x: Value, linear: ir.Linear, scale: float, branch: str, layer: str) -> Value:
    """What `branch` adds to the stream: its last `layer`, `linear`, of `x`, times `scale`."""
    product = graph.linear(x, linear, f"{branch}.{layer}")
    return product if scale == 1.0 else graph.scale(product, scale, f"{branch}.scale")


def add_last_product(
    graph: GraphBuilder,
    x: Value,
    linear: ir.Linear,
    scale: float,
    residual: Stream,
    branch: str,
    layer: str,
    *,
    residual_in_product: bool,
) -> Stream:
    """`residual` with what `branch` adds to it, in one product with `residual_in_product`."""
    if residual_in_product:
        weight = graph.parameter(f"{branch}.{layer}.weight", linear.weight)
        return residual.replace(graph.gemm(x, weight, residual.matrix, f"{branch}.residual"))
    added = last_product(graph, x, linear, scale, branch, layer)
    return residual.replace(graph.add(residual.matrix, added, f"{branch}.residual"))
