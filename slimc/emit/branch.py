"""The last product of a branch, and its sum with the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

from slimc import ir
from slimc.emit.graph import GraphBuilder, Value
from slimc.emit.stream import Stream


@dataclass(frozen=True, eq=False)
class LastProduct:
    """The last layer of a branch, with the parameters of `module`, and what multiplies its result."""

    linear: ir.Linear
    module: str
    residual_scale: float
    layer_scale: ir.FloatArray | None


def last_product(graph: GraphBuilder, x: Value, last: LastProduct, branch: str) -> Value:
    """What `branch` adds to the stream: its last layer of `x`."""
    product = graph.linear(x, last.linear, last.module)
    if last.residual_scale != 1.0:
        product = graph.scale(product, last.residual_scale, f"{branch}.scale")
    if last.layer_scale is not None:
        factors = graph.parameter(f"{branch}.layer_scale", last.layer_scale)
        product = graph.mul(product, factors, f"{branch}.scaled")
    return product


def add_last_product(
    graph: GraphBuilder, x: Value, last: LastProduct, residual: Stream, branch: str, *, residual_in_product: bool
) -> Stream:
    """`residual` with what `branch` adds to it, in one product with `residual_in_product`."""
    if residual_in_product:
        weight = graph.parameter(f"{last.module}.weight", last.linear.weight)
        return residual.replace(graph.gemm(x, weight, residual.matrix, f"{branch}.residual"))
    added = last_product(graph, x, last, branch)
    return residual.replace(graph.add(residual.matrix, added, f"{branch}.residual"))
