"""Half-precision arithmetic spelled out in float32, for runtimes that skip it.

ONNX Runtime has no float16 kernels for x86 CPUs and no bfloat16 ones at all. A float16 node runs in float32, and the casts
that surround it are dropped: what such a model answers there shows neither the range of float16 nor its rounding. Here
every value that the graph stores in half precision is computed in float32 and then rounded explicitly, by a cast to half
precision and one back, as kernels with a float32 accumulator do: results beyond the range become infinite. ONNX Runtime
keeps the casts that it finds in a float32 graph.

Weights and constants are exactly the half-precision ones. What merely moves values (Reshape, Gather, ...) rounds nothing.
"""

from __future__ import annotations

import onnx_ir as ir

from slimc.emit.precision import LAYOUT, content_of, subgraphs

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_EXACT = LAYOUT | {"Relu", "If"}


def is_half(model: ir.Model) -> bool:
    """Whether the graph of `model` stores any value in half precision."""
    return any(
        value.dtype in _HALF
        for graph in model.graphs()
        for value in (*graph.initializers.values(), *(output for node in graph for output in node.outputs))
    )


def round_results(model: ir.Model) -> None:
    """Rewrite the half-precision `model` in place to compute in float32 and to round every result to half precision.

    Inputs and outputs of the graph that are float32 keep their names and types.
    """
    _round_graph(model.graph)


def _round_graph(graph: ir.Graph) -> None:
    for initializer in graph.initializers.values():
        if initializer.dtype in _HALF:
            initializer.const_value = _full(initializer)
            initializer.dtype = ir.DataType.FLOAT
    for node in list(graph):
        for subgraph in subgraphs(node):
            _round_graph(subgraph)
        for output in node.outputs:
            if output.dtype in _HALF:
                _round(graph, node, output)


def _round(graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
    """Let `output` of `node` be float32, rounded to half precision where `node` computes it."""
    dtype = output.dtype
    assert dtype is not None
    if node.op_type == "Constant":
        node.attributes["value"] = ir.AttrTensor("value", _full(output))
    elif node.op_type == "Cast":
        _follow(graph, node, output, ir.DataType.FLOAT)  # to half precision already; and back
        return
    elif node.op_type not in _EXACT:
        rounded = _follow(graph, node, output, dtype)
        producer = rounded.producer()
        assert producer is not None
        _follow(graph, producer, rounded, ir.DataType.FLOAT)
    output.dtype = ir.DataType.FLOAT


def _follow(graph: ir.Graph, node: ir.Node, output: ir.Value, dtype: ir.DataType) -> ir.Value:
    """What a new cast of `output` to `dtype` behind `node` yields; all who read `output` read that now."""
    name = f"{output.name}.{dtype.name.lower()}"
    cast = ir.node("Cast", [output], {"to": dtype}, name=f"{name}.cast")
    result = cast.outputs[0]
    result.name, result.shape, result.dtype = name, output.shape, dtype
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    cast.replace_input_with(0, output)
    graph.insert_after(node, cast)
    return result


def _full(value: ir.Value) -> ir.TensorProtocol:
    """The constant `value` in float32."""
    content = content_of(value)
    assert content is not None
    return ir.tensor(content.numpy().astype("float32"), name=value.name)
