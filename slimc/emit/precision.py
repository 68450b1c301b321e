"""Half precision, written into the graph: a float32 ONNX model to a strongly typed float16 or bfloat16 one.

TensorRT 11 and TensorRT-RTX take the types of a network as they stand and have no precision flags, so the choice is
made here. Matrix products (Gemm, MatMul, Conv) and what merely moves their results or adds a bias are computed in half
precision. The residual stream, LayerNormalization, Softmax, GELU, everything that takes a decision (TopK, comparisons)
and the logits stay in float32, as does every operator not listed here. GELU does because 1 + erf(x) cancels: that costs
no kernel, as it is computed where the product before it ends.

A float32 value is cast where a product reads it; a product's result is cast back where it enters what must be float32.
Both kinds of cast vanish in the neighbouring kernels of TensorRT.

A weight that float16 cannot hold stays in float32, and its product with it: one with an entry beyond 65504, or one
that loses more than `MAX_SUBNORMAL_LOSS` of its norm to entries below 2^-14, where float16 has fewer than 11
significant bits. Convolutions stay in float32 for bfloat16, which Conv takes from opset 22 on only.

So does a product whose operands or results float16 cannot hold: beyond 65504 they would be infinite. How large they are is
measured by whoever has inputs (`slimc.evaluate.ranges`); `RANGE_MARGIN` is kept for inputs that nobody measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import onnx_ir as ir

from slimc.errors import OptionError
from slimc.ir import FloatArray

Precision = Literal["fp32", "fp16", "bf16"]

MAX_SUBNORMAL_LOSS = 1e-3
"""Share of a weight's norm; twice float16's ordinary rounding error of 2^-11, so that beyond it subnormals dominate."""

RANGE_MARGIN = 4.0
"""How many times the largest value that was measured must fit into float16.

Activations have heavy tails: the largest of a dozen inputs is exceeded by others, though rarely by more than twice, and a
kernel may hold partial sums that exceed the sum. Two for each makes four: values up to 16376 are float16.
"""

TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}
"""Largest difference from the reference, as a share of the logits' spread.

float32: rounding of 2^-24 an operation, in the order that a back end likes, over the operations of a dozen blocks.
float16: 2^-11 a product, some fifty products deep and independent, so about 2^-11 sqrt(50) = 0.35 % of the spread for
one logit, and up to three times that for the worst of thousands. bfloat16 has three bits fewer: eight times as much.
"""


def find_precision(name: str) -> Precision:
    """The precision called `name`.

    Raises:
        OptionError: there is none.
    """
    for precision in get_args(Precision):
        if precision == name:
            return precision  # type: ignore[no-any-return]
    raise OptionError(f"--precision: {name!r} is unknown; expected {', '.join(get_args(Precision))}")


_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_MATRIX = frozenset({"Gemm", "MatMul", "Conv"})
LAYOUT = frozenset({
    "Reshape", "Transpose", "Slice", "Gather", "GatherElements", "GatherND", "Split", "Concat", "Squeeze", "Unsqueeze",
    "Expand", "Flatten", "Identity", "Pad",
})  # fmt: skip
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Relu"})
_FOLLOWERS = LAYOUT | _ELEMENTWISE
_EVERY_INPUT = _ELEMENTWISE | {"Concat"}
_LARGEST_HALF = 65504.0
_SMALLEST_NORMAL_HALF = 2.0**-14


@dataclass(frozen=True)
class Largest:
    """The largest absolute value seen: `measured`, and `fixed`, that of a constant which is added whatever the input."""

    measured: float
    fixed: float = 0.0


@dataclass(frozen=True)
class Kept:
    """A weight, product or sum that stays in float32, and why."""

    name: str
    reason: str


def to_half(
    model: ir.Model, precision: Literal["fp16", "bf16"], largest: Mapping[str, Largest] | None = None
) -> tuple[Kept, ...]:
    """Rewrite the float32 `model` in place; inputs and outputs keep their names and types.

    Args:
        model: to rewrite.
        precision: to compute products in.
        largest: how large the values get that `stored_in_half` names, where known; bfloat16 does not need it.

    Returns:
        What stays in float32 because float16 cannot hold it: weights by their names, products and sums by their nodes'.
    """
    float32 = _float32_values(model.graph)
    choice = _Choice(_TYPES[precision], float32, largest or {})
    choice.visit(model.graph)
    _Conversion(_TYPES[precision], float32, choice.nodes).convert(model.graph)
    _drop_unused(model.graph)
    model.metadata_props["slimc.precision"] = precision
    return tuple(choice.kept.values())


def stored_in_half(model: ir.Model, precision: Literal["fp16", "bf16"]) -> tuple[ir.Value, ...]:
    """The computed values of the float32 `model` that `to_half` would store in half precision, if all of them fit."""
    choice = _Choice(_TYPES[precision], _float32_values(model.graph), {})
    choice.visit(model.graph)
    values = (value for node in choice.nodes for value in (*_computed(_half_inputs(node)), *node.outputs))
    return tuple(dict.fromkeys(values))


def break_attention_fusion(graph: ir.Graph) -> None:
    """Put a Relu behind every Softmax: probabilities are not negative, so nothing changes but the pattern that TensorRT
    looks for when it fuses attention.
    """
    for node in list(graph.all_nodes()):
        if node.op_type == "Softmax" and node.graph is not None:
            output = node.outputs[0]
            relu = ir.node("Relu", [output], name=f"{node.name}.relu")
            result = relu.outputs[0]
            result.name, result.shape, result.type = f"{output.name}.relu", output.shape, output.type
            output.replace_all_uses_with(result)
            relu.replace_input_with(0, output)
            node.graph.insert_after(node, relu)


def unfit_for_half(weight: FloatArray) -> str | None:
    """Why `weight` cannot be held in float16; none where it can."""
    if weight.size == 0:
        return None
    magnitude = np.abs(weight)
    largest = magnitude.max()
    if largest > _LARGEST_HALF:
        return f"its largest entry {largest:.3g} is beyond {_LARGEST_HALF:.0f}"
    subnormal = weight[magnitude < _SMALLEST_NORMAL_HALF].astype(np.float64)
    lost = np.linalg.norm(subnormal - subnormal.astype(np.float16))
    # In units of the largest entry, whose square float32 can hold.
    loss = lost / (float(largest) * np.linalg.norm(magnitude / largest)) if lost > 0 else 0.0
    if loss > MAX_SUBNORMAL_LOSS:
        return f"it loses {loss:.1%} of its norm to subnormals, more than {MAX_SUBNORMAL_LOSS:.1%}"
    return None


def beyond_half(largest: Largest) -> str | None:
    """Why float16 cannot hold values that get so large, with the margin kept; none where it can."""
    if RANGE_MARGIN * largest.measured + largest.fixed <= _LARGEST_HALF:
        return None
    seen = largest.measured + largest.fixed
    short = f": less than {RANGE_MARGIN:.0f} times that" if seen <= _LARGEST_HALF else ""
    return f"up to {seen:.2g} on the reference inputs, float16 holds {_LARGEST_HALF:.0f}{short}"


def _float32_values(graph: ir.Graph) -> set[ir.Value]:
    """Values that must be float32: what an operator outside the lists reads, what a graph returns, and what these
    are the sum, the product or a rearrangement of.
    """
    needed = {value for value in graph.outputs if value is not None}
    for node in reversed(graph):
        for subgraph in subgraphs(node):
            needed |= _float32_values(subgraph)
        if node.op_type in _MATRIX:
            continue
        if node.op_type not in _FOLLOWERS or any(output in needed for output in node.outputs):
            needed |= {value for value in _data_inputs(node) if value is not None}
    return needed


def _data_inputs(node: ir.Node) -> Sequence[ir.Value | None]:
    """The inputs whose type the outputs share; all inputs where the operator is not listed."""
    return node.inputs[:1] if node.op_type in _FOLLOWERS - _EVERY_INPUT else node.inputs


def _half_inputs(node: ir.Node) -> Sequence[ir.Value | None]:
    """The inputs that are half precision where `node` computes in it; they come first."""
    return node.inputs if node.op_type in _MATRIX | _EVERY_INPUT else node.inputs[:1]


def _computed(values: Iterable[ir.Value | None]) -> list[ir.Value]:
    """Those of `values` that are no constants."""
    return [value for value in values if value is not None and not _is_constant(value)]


def subgraphs(node: ir.Node) -> Iterable[ir.Graph]:
    """The graphs inside `node`."""
    return (attribute.as_graph() for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH)


@dataclass
class _Choice:
    """Which nodes compute in half precision: one walk over the float32 graph, in order, that changes nothing."""

    dtype: ir.DataType
    float32: set[ir.Value]
    largest: Mapping[str, Largest]
    nodes: dict[ir.Node, None] = field(default_factory=dict)
    half: set[ir.Value] = field(default_factory=set)
    kept: dict[str, Kept] = field(default_factory=dict)

    def visit(self, graph: ir.Graph) -> None:
        for node in graph:
            for subgraph in subgraphs(node):
                self.visit(subgraph)
            if (self._is_product(node) or self._follows(node)) and self._values_fit(node):
                self.nodes[node] = None
                self.half.update(node.outputs)

    def _is_product(self, node: ir.Node) -> bool:
        """Whether `node` is a matrix product whose weights half precision can hold."""
        allowed = _MATRIX if self.dtype == ir.DataType.FLOAT16 else _MATRIX - {"Conv"}
        return node.op_type in allowed and self._weights_fit(node)

    def _weights_fit(self, node: ir.Node) -> bool:
        """Whether half precision holds every constant that `node` reads; weights it does not hold are noted."""
        unfit = False
        for value in node.inputs:
            weight = _float32_constant(value)
            reason = unfit_for_half(weight) if weight is not None and self.dtype == ir.DataType.FLOAT16 else None
            if reason is not None and value is not None:
                if node.op_type in _MATRIX:
                    self._keep(str(value.name), reason)
                unfit = True
        return not unfit

    def _follows(self, node: ir.Node) -> bool:
        """Whether `node` gets half-precision data only, and nobody needs its result in float32."""
        if node.op_type not in _FOLLOWERS or any(output in self.float32 for output in node.outputs):
            return False
        computed = _computed(_data_inputs(node))
        return bool(computed) and all(value in self.half for value in computed) and self._weights_fit(node)

    def _values_fit(self, node: ir.Node) -> bool:
        """Whether float16 holds what `node` reads and yields; where it does not, that is noted."""
        if self.dtype != ir.DataType.FLOAT16:
            return True
        for kind, values in (("results", node.outputs), ("operands", _computed(_half_inputs(node)))):
            for value in values:
                reason = beyond_half(self.largest.get(str(value.name), Largest(0.0)))
                if reason is not None:
                    self._keep(str(node.name), f"{kind} {reason}")
                    return False
        return True

    def _keep(self, name: str, reason: str) -> None:
        self.kept[name] = Kept(name, reason)


@dataclass
class _Conversion:
    """One walk over the graph, in order: `half` holds the values that have become half precision so far."""

    dtype: ir.DataType
    float32: set[ir.Value]
    nodes: Mapping[ir.Node, None]
    half: set[ir.Value] = field(default_factory=set)
    casts: dict[tuple[ir.Value, ir.DataType, ir.Graph], ir.Value] = field(default_factory=dict)

    def convert(self, graph: ir.Graph) -> None:
        for node in list(graph):
            for subgraph in subgraphs(node):
                self.convert(subgraph)
            if node in self.nodes:
                self._make_half(graph, node)
            else:
                self._make_full(graph, node)

    def _make_half(self, graph: ir.Graph, node: ir.Node) -> None:
        for index, value in enumerate(_half_inputs(node)):
            if value is not None and value not in self.half:
                node.replace_input_with(index, self.cast(graph, node, value, self.dtype))
        for output in node.outputs:
            output.dtype = self.dtype
            self.half.add(output)
            if output in self.float32:
                self._restore(graph, node, output)

    def _make_full(self, graph: ir.Graph, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and value in self.half:
                node.replace_input_with(index, self.cast(graph, node, value, ir.DataType.FLOAT))

    def cast(self, graph: ir.Graph, node: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` as `dtype`, before `node`: a converted constant, or a Cast that all its readers share."""
        owner = value.graph if _is_constant(value) and value.graph is not None else graph
        key = (value, dtype, owner)
        if key not in self.casts:
            name, constant = f"{value.name}.{dtype.name.lower()}", _float32_constant(value)
            # A value that several subgraphs read is cast in each of them.
            others = sum(other is value and kind == dtype for other, kind, _ in self.casts)
            name = f"{name}.{others}" if others else name
            if constant is None:
                self.casts[key] = _cast_node(graph, node, value, dtype, name)
            else:
                self.casts[key] = _constant(owner, value, constant.astype(dtype.numpy()), name)
        return self.casts[key]

    def _restore(self, graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
        """Put a float32 value, under the same name, in place of `output`, which keeps the half-precision result."""
        name = str(output.name)
        output.name = f"{name}.{self.dtype.name.lower()}"
        cast = ir.node("Cast", [output], {"to": ir.DataType.FLOAT}, name=f"{name}.cast")
        restored = cast.outputs[0]
        restored.name, restored.shape, restored.dtype = name, output.shape, ir.DataType.FLOAT
        output.replace_all_uses_with(restored, replace_graph_outputs=True)
        cast.replace_input_with(0, output)
        graph.insert_after(node, cast)
        self.casts[restored, self.dtype, graph] = (
            output  # who wants it in half precision again takes what it was made of
        )


def _is_constant(value: ir.Value) -> bool:
    return content_of(value) is not None


def content_of(value: ir.Value) -> ir.TensorProtocol | None:
    """What an initializer or a Constant node holds; none where `value` is computed."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        return producer.attributes["value"].as_tensor()
    return value.const_value


def _float32_constant(value: ir.Value | None) -> FloatArray | None:
    content = None if value is None else content_of(value)
    return None if content is None or content.dtype != ir.DataType.FLOAT else content.numpy()


def _constant(graph: ir.Graph, original: ir.Value, content: FloatArray, name: str) -> ir.Value:
    """`content` in the same form as `original`: an initializer or a Constant node."""
    tensor = ir.tensor(content, name=name)
    producer = original.producer()
    if producer is not None:
        node = ir.node("Constant", [], {"value": tensor}, name=name)
        value = node.outputs[0]
        value.name, value.shape, value.dtype = name, ir.Shape(content.shape), tensor.dtype
        graph.insert_after(producer, node)
        return value
    value = ir.Value(name=name, shape=ir.Shape(content.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _cast_node(graph: ir.Graph, before: ir.Node, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
    cast = ir.node("Cast", [value], {"to": dtype}, name=f"{name}.cast")
    result = cast.outputs[0]
    result.name, result.shape, result.dtype = name, value.shape, dtype
    graph.insert_before(before, cast)
    return result


def _drop_unused(graph: ir.Graph) -> None:
    """Remove the float32 originals of constants that are only read in half precision."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    for node in list(graph):
        for subgraph in subgraphs(node):
            _drop_unused(subgraph)
        if node.op_type == "Constant" and not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
