"""How large the values of a graph get: whether float16 can hold them.

The float32 graph runs once on some images with a maximum behind every value in question, so that nothing but one number a
value leaves it. A value inside an If cannot leave: both branches are computed, always, and the result is chosen.

What slimc itself adds, such as the offset that lifts the scores of prefix rows, is the same for every input. It is told
apart, for a margin on it would be for nothing. It stands in Constant nodes; parameters of the network are initializers.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as oir

from slimc.backends import ort
from slimc.backends.base import image_input
from slimc.emit.file import save
from slimc.emit.precision import Largest, content_of
from slimc.errors import ModelFileError
from slimc.files.images import Images
from slimc.files.output import scratch

_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
_SUFFIX = "#largest"  # no name that slimc gives has a #


def largest_values(model: oir.Model, names: Iterable[str], images: Images) -> dict[str, Largest]:
    """How large each of `names`, values of `model`, gets over `images` [n, channels, height, width], in absolute value.

    The last batch is filled with copies of its last image. What is not a number counts as infinite.

    Raises:
        MissingError: ONNX Runtime is not installed.
        ModelFileError: the model takes no such images.
    """
    measuring = model.clone()
    _inline_branches(measuring.graph)
    sources = _add_maxima(measuring.graph, set(names))
    if not sources:
        return {}
    with scratch() as directory:
        path = directory / "measuring.onnx"
        save(measuring, path)
        del measuring
        session = ort.load(path, fused=False)
        spec = image_input(session, "the model")
        if images.ndim != 4 or images.shape[1:] != spec.shape[1:]:
            raise ModelFileError(
                f"the model takes images {list(spec.shape[1:])}, but was given {list(images.shape[1:])}: "
                "the images belong to another model"
            )
        found = {source: 0.0 for source, _ in sources.values()}
        for start in range(0, len(images), spec.shape[0]):
            batch = images[np.minimum(np.arange(start, start + spec.shape[0]), len(images) - 1)]
            results = session.run({spec.name: batch})
            for source, largest in found.items():
                value = float(results[source + _SUFFIX])
                found[source] = max(largest, np.inf if np.isnan(value) else value)
    return {name: Largest(found[source], fixed) for name, (source, fixed) in sources.items()}


def _inline_branches(graph: oir.Graph) -> None:
    """Replace every If of `graph` by both of its branches and a choice between their results."""
    for node in list(graph):
        if node.op_type != "If":
            continue
        results = []
        for branch in ("then_branch", "else_branch"):
            body = node.attributes[branch].as_graph()
            _inline_branches(body)
            results.append(list(body.outputs))
            inner = list(body)
            body.remove(inner)
            graph.insert_before(node, inner)
        for output, then, otherwise in zip(node.outputs, *results, strict=True):
            choice = oir.node("Where", [node.inputs[0], then, otherwise], name=str(output.name))
            choice.outputs[0].shape, choice.outputs[0].dtype = output.shape, output.dtype
            graph.insert_before(node, choice)
            output.replace_all_uses_with(choice.outputs[0], replace_graph_outputs=True)
            name, output.name = output.name, f"{output.name}.if"
            choice.outputs[0].name = name
        graph.remove(node, safe=True)


def _add_maxima(graph: oir.Graph, names: set[str]) -> dict[str, tuple[str, float]]:
    """Make the largest absolute values of the values called `names` the only outputs of `graph`.

    Returns:
        By name, the value whose maximum is that of the named one (where values are only moved, they are measured once), and
        the largest constant that is added to what is measured.
    """
    sources: dict[str, tuple[str, float]] = {}
    outputs: dict[oir.Value, tuple[oir.Value, float]] = {}
    values = [value for node in graph for value in node.outputs if value.name in names]
    for value in values:
        if value.shape is not None and 0 in value.shape:
            continue
        source = value
        while (producer := source.producer()) is not None and producer.op_type in _MOVES:
            assert producer.inputs[0] is not None
            source = producer.inputs[0]
        if source not in outputs:
            outputs[source] = _maximum(graph, source)
        sources[str(value.name)] = (str(source.name), outputs[source][1])
    graph.outputs.clear()
    graph.outputs.extend(output for output, _ in outputs.values())
    return sources


def _maximum(graph: oir.Graph, source: oir.Value) -> tuple[oir.Value, float]:
    """A new value: the largest absolute value of `source`, less a constant that is added to it; and how large that is."""
    addend, fixed = _fixed_addend(source), 0.0
    nodes = []
    measured = source
    if addend is not None:
        content = content_of(addend)
        assert content is not None
        fixed = float(np.abs(content.numpy()).max(initial=0.0))
        nodes.append(oir.node("Sub", [source, addend], name=f"{source.name}#moving"))
        measured = nodes[-1].outputs[0]
    nodes.append(oir.node("Abs", [measured], name=f"{source.name}#absolute"))
    name = f"{source.name}{_SUFFIX}"
    nodes.append(oir.node("ReduceMax", [nodes[-1].outputs[0]], {"keepdims": 0}, name=name))
    result = nodes[-1].outputs[0]
    result.name, result.shape, result.dtype = name, oir.Shape(()), oir.DataType.FLOAT
    graph.extend(nodes)
    return result, fixed


def _fixed_addend(value: oir.Value) -> oir.Value | None:
    """The Constant node's value that is added to something where `value` is computed; none where there is none."""
    node = value.producer()
    if node is None or node.op_type not in ("Add", "Gemm"):
        return None
    for addend in node.inputs[2:] if node.op_type == "Gemm" else node.inputs:
        producer = None if addend is None else addend.producer()
        if producer is not None and producer.op_type == "Constant":
            return addend
    return None
