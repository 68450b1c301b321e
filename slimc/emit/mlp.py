"""Emission of the FFN branch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from slimc import ir
from slimc.emit.activations import activate
from slimc.emit.branch import LastProduct, add_last_product
from slimc.emit.graph import GraphBuilder, Value
from slimc.emit.norms import normalise
from slimc.emit.projection import stacked
from slimc.emit.stream import Stream
from slimc.ir.interpret.linear import zero_row_output
from slimc.targets.plan import MlpPlan


def emit_mlp(graph: GraphBuilder, plan: MlpPlan, stream: Stream, block: str) -> Stream:
    """`stream` with the branch added."""
    mlp, name = plan.node, f"{block}.mlp"
    everything = np.arange(stream.rows)
    rows = everything if mlp.rows is None else mlp.rows
    seen = stream.take(graph, rows, f"{name}.rows")
    n = normalise(graph, seen.matrix, mlp.norm, f"{block}.norm2")
    if mlp.token_mask is not None:
        n = graph.mul(n, seen.column(graph, mlp.token_mask), f"{block}.norm2.mask")
    hidden = hidden_units(graph, mlp, n, name)
    last = LastProduct(mlp.down, f"{name}.fc2", mlp.residual_scale, mlp.layer_scale)
    summed = add_last_product(graph, hidden, last, seen, name, residual_in_product=plan.residual_in_product)
    if len(rows) == stream.rows:
        return summed
    others = np.setdiff1d(everything, rows)
    idle = stream.take(graph, others, f"{name}.idle")
    constant = graph.parameter(f"{name}.idle.bias", zero_row_output(mlp))
    idle = idle.replace(graph.add(idle.matrix, constant, f"{name}.idle.residual"))
    return Stream.merge(graph, [(idle, others), (summed, rows)], f"{name}.merged")


def hidden_units(
    graph: GraphBuilder, mlp: ir.Mlp, n: Value, name: str, gated: Callable[[Value], Value] | None = None
) -> Value:
    """The hidden units [rows, F] of an FFN that reads `n`, as `down` reads them; `gated` is applied to what `up` reads.

    A gate and what it multiplies come out of one product.
    """
    if mlp.inputs is not None:
        n = graph.take(n, mlp.inputs, 1, f"{name}.inputs")
    n = n if gated is None else gated(n)
    if mlp.gate is None:
        hidden = activate(graph, mlp.activation, graph.linear(n, mlp.up, f"{name}.fc1"), f"{name}.act")
    else:
        both = graph.linear(n, stacked([mlp.gate, mlp.up]), f"{name}.fc1")
        width = len(mlp.up.weight)
        gate, up = graph.split(both, [width, width], 1, [f"{name}.fc1.gate", f"{name}.fc1.up"])
        hidden = graph.mul(activate(graph, mlp.activation, gate, f"{name}.act"), up, f"{name}.act.product")
    if mlp.mask is None:
        return normalise(graph, hidden, mlp.inner_norm, f"{name}.norm")
    mask = graph.constant(mlp.mask.astype(np.float32), "mask")
    hidden = graph.mul(hidden, mask, f"{name}.mask")
    if mlp.inner_norm is None:
        return hidden
    return graph.mul(normalise(graph, hidden, mlp.inner_norm, f"{name}.norm"), mask, f"{name}.norm.mask")
