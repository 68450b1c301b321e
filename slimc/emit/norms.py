"""Emission of normalisations: LayerNormalization where it says what is meant, else the operators that it consists of.

RMSNorm is the chain that runtimes recognise: the operator for it came with opset 23 only. A LayerNorm that counts channels
which are not there, or does not count some of those that are, has no operator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slimc import ir
from slimc.emit.graph import GraphBuilder, Value, dims


@dataclass(frozen=True)
class EmittedNorm:
    """A norm whose parameters, weight and bias, are in the graph: it may be applied to several values."""

    norm: ir.Norm
    parameters: tuple[Value, ...]

    def __call__(self, graph: GraphBuilder, x: Value, name: str) -> Value:
        """`x` normalised over its last axis."""
        if isinstance(self.norm, ir.RmsNorm):
            return _rms_norm(graph, x, self.norm.eps, self.parameters[0], name)
        if self.norm.ghosts:
            return _norm_with_ghosts(graph, x, self.norm, self.parameters, name)
        attributes = {"axis": -1, "epsilon": self.norm.eps}
        return graph.op("LayerNormalization", [x, *self.parameters], name, dims(x), attributes)


def emitted_norm(graph: GraphBuilder, norm: ir.Norm, module: str) -> EmittedNorm:
    """`norm` with the parameters of `module`."""
    arrays = {"weight": norm.weight} if isinstance(norm, ir.RmsNorm) else {"weight": norm.weight, "bias": norm.bias}
    return EmittedNorm(norm, tuple(graph.parameter(f"{module}.{part}", array) for part, array in arrays.items()))


def normalise(graph: GraphBuilder, x: Value, norm: ir.Norm | None, module: str) -> Value:
    """`x` normalised over its last axis, with the parameters of `module`; `x` itself where there is no norm."""
    return x if norm is None else emitted_norm(graph, norm, module)(graph, x, module)


def _rms_norm(graph: GraphBuilder, x: Value, eps: float, weight: Value, name: str) -> Value:
    """`x` / sqrt(mean of x^2 + eps) * weight."""
    squares = graph.op("Pow", [x, graph.constant(np.float32(2), "two")], f"{name}.squares", dims(x))
    mean = graph.reduce("ReduceMean", squares, -1, f"{name}.mean", keep=True)
    scaled = graph.op("Div", [x, _root(graph, mean, eps, name)], f"{name}.scaled", dims(x))
    return graph.mul(scaled, weight, name)


def _norm_with_ghosts(
    graph: GraphBuilder, x: Value, norm: ir.LayerNorm, parameters: tuple[Value, ...], name: str
) -> Value:
    """LayerNorm whose mean and variance are those of more channels than there are, or of fewer; the others are zero.

    With n channels and g ghosts, mean = n mean(x) / (n + g), and each ghost adds mean^2 to the sum of squares.
    """
    channels = dims(x)[-1]
    counted = channels + norm.ghosts
    mean = graph.reduce("ReduceMean", x, -1, f"{name}.mean.own", keep=True)
    mean = graph.scale(mean, channels / counted, f"{name}.mean")
    centred = graph.op("Sub", [x, mean], f"{name}.centred", dims(x))
    own = graph.reduce(
        "ReduceMean", graph.mul(centred, centred, f"{name}.squares"), -1, f"{name}.squares.own", keep=True
    )
    own = graph.scale(own, channels / counted, f"{name}.variance.own")
    others = graph.scale(graph.mul(mean, mean, f"{name}.mean.square"), norm.ghosts / counted, f"{name}.variance.ghosts")
    variance = graph.add(own, others, f"{name}.variance")
    scaled = graph.op("Div", [centred, _root(graph, variance, norm.eps, name)], f"{name}.scaled", dims(x))
    weight, bias = parameters
    return graph.add(graph.mul(scaled, weight, f"{name}.weighted"), bias, name)


def _root(graph: GraphBuilder, square: Value, eps: float, name: str) -> Value:
    """sqrt(square + eps)."""
    total = graph.add(square, graph.constant(np.float32(eps), "eps"), f"{name}.eps")
    return graph.op("Sqrt", [total], f"{name}.root", dims(square))
