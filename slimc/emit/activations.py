"""Emission of what stands between the linear layers of an FFN.

Where an operator is newer than the opset, its place takes the chain of older ones that runtimes recognise.
"""

from __future__ import annotations

import math

import numpy as np

from slimc import ir
from slimc.emit.graph import GraphBuilder, Value, dims

_GELU_OPSET = 20


def activate(graph: GraphBuilder, kind: ir.Activation, x: Value, name: str) -> Value:
    """`x` behind an activation, as `slimc.ir.Activation` defines them."""
    if kind == "gelu":
        return gelu(graph, x, name)
    if kind == "gelu_tanh":
        return _gelu_tanh(graph, x, name)
    if kind == "relu":
        return graph.op("Relu", [x], name, dims(x))
    inner = x if kind == "silu" else graph.scale(x, 1.702, f"{name}.scaled")
    return graph.mul(x, graph.op("Sigmoid", [inner], f"{name}.sigmoid", dims(x)), name)


def gelu(graph: GraphBuilder, x: Value, name: str) -> Value:
    """Exact GELU."""
    if graph.opset >= _GELU_OPSET:
        return graph.op("Gelu", [x], name, dims(x))
    ratio = graph.op("Div", [x, graph.constant(np.float32(math.sqrt(2)))], f"{name}.div", dims(x))
    erf = graph.op("Erf", [ratio], f"{name}.erf", dims(x))
    one_more = graph.add(erf, graph.constant(np.float32(1)), f"{name}.add")
    return graph.scale(graph.mul(x, one_more, f"{name}.mul"), 0.5, name)


def _gelu_tanh(graph: GraphBuilder, x: Value, name: str) -> Value:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    if graph.opset >= _GELU_OPSET:
        return graph.op("Gelu", [x], name, dims(x), {"approximate": "tanh"})
    cube = graph.op("Pow", [x, graph.constant(np.float32(3), "three")], f"{name}.cube", dims(x))
    inner = graph.add(x, graph.scale(cube, 0.044715, f"{name}.cube.scaled"), f"{name}.inner")
    inner = graph.scale(inner, math.sqrt(2.0 / math.pi), f"{name}.inner.scaled")
    tanh = graph.op("Tanh", [inner], f"{name}.tanh", dims(x))
    one_more = graph.add(tanh, graph.constant(np.float32(1)), f"{name}.add")
    return graph.mul(graph.scale(x, 0.5, f"{name}.half"), one_more, name)
