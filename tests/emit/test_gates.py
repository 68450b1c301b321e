from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimc import ir
from slimc.backends import ort
from slimc.backends.base import run_images
from slimc.compiler.adaptive import limiting_passes
from slimc.compiler.limits import Limits, graph_decisions, limits_of
from slimc.compiler.pipeline import compile_model, passes_for
from slimc.emit.file import write_model
from slimc.emit.model import emit
from slimc.evaluate.gate_decisions import run_deciding
from slimc.files.reference import Reference
from slimc.ir.interpret.model import interpret
from slimc.passes.remove_settled_gates import Settled
from slimc.targets.count import count
from slimc.targets.target import find_target
from tests.gated import VECTORS, images_for, observe, random_adaptive, vector
from tests.onnx_files import macs, parameters


@dataclass(frozen=True)
class Way:
    """How a model is emitted."""

    conditional: bool = False
    capacity: bool = False
    batch_size: int = 1
    target: str = "cpu"


WAYS = {
    "masked": Way(),
    "masked-batch": Way(batch_size=4),
    "conditional": Way(conditional=True),
    "capacity": Way(capacity=True),
    "capacity-batch": Way(capacity=True, batch_size=4, target="sm89"),
    "conditional+capacity": Way(conditional=True, capacity=True),
}


def written(model: ir.Model, way: Way, path: Path) -> Path:
    onnx_model = emit(model, find_target(way.target), batch_size=way.batch_size, opset=17, conditional=way.conditional)
    write_model(onnx_model, path)
    return path


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", VECTORS)
def test_every_way_computes_and_decides_what_the_released_code_does(name, way, tmp_path):
    released, how = vector(name), WAYS[way]
    _, usage = observe(released.searched, released.images)
    masked = released.searched.masked
    limits = limits_of(usage, masked, 1.0) if how.capacity else None
    first = limiting_passes(limits) if limits else ()
    model = compile_model(masked, (*first, *passes_for(find_target(how.target))))
    path = written(model, how, tmp_path / "m.onnx")
    logits = run_images(ort.load(path), released.images, "m")
    np.testing.assert_allclose(logits, released.io["logits"], rtol=0, atol=2e-5)
    decisions = graph_decisions(usage, masked, limits)
    reference = Reference(released.images, {"logits": released.io["logits"]}, {}, decisions=decisions)
    decided = run_deciding(path, reference, ort.load)[1]
    assert decided.keys() == decisions.keys()
    assert all(np.array_equal(decided[value], decisions[value]) for value in decisions)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    head_effect=st.sampled_from(["plain", "v2", "attn"]),
    way=st.builds(Way, st.booleans(), st.booleans(), st.just(1), st.sampled_from(["cpu", "sm89"])),
    batch_size=st.sampled_from([1, 2]),
    tokens_with_mlp=st.booleans(),
    tokens_from=st.sampled_from([None, 0]),
    norm_policy=st.booleans(),
)
def test_every_flag_survives_emission(
    tmp_path_factory, seed, head_effect, way, batch_size, tokens_with_mlp, tokens_from, norm_policy
):
    flags = {"tokens_with_mlp": tokens_with_mlp and tokens_from is not None, "tokens_from": tokens_from}
    searched = random_adaptive(seed, head_effect=head_effect, norm_policy=norm_policy, **flags)
    images = images_for(searched, 2, seed)
    expected, usage = observe(searched, images)
    first = limiting_passes(limits_of(usage, searched.masked, 1.0)) if way.capacity else ()
    model = compile_model(searched.masked, (*first, *passes_for(find_target(way.target))))
    way = way if way.conditional else Way(False, way.capacity, batch_size, way.target)
    path = written(model, way, tmp_path_factory.mktemp("flags") / "m.onnx")
    clear = usage.margin > 1e-4
    found = run_images(ort.load(path), images, "m")
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found[clear], expected[clear], rtol=0, atol=2e-4 * scale)


@pytest.mark.parametrize("opset", [17, 20, 23])
def test_every_opset_says_the_same(opset, tmp_path):
    released = vector(VECTORS[2])
    model = compile_model(released.searched.masked, passes_for(find_target("cpu")))
    write_model(emit(model, find_target("cpu"), opset=opset, conditional=True), tmp_path / "m.onnx")
    found = run_images(ort.load(tmp_path / "m.onnx"), released.images, "m")
    np.testing.assert_allclose(found, released.io["logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("heads", [(False,) * 4, (False, True, False, True)])
def test_blocks_whose_heads_are_settled_are_emitted_without_them(heads, tmp_path):
    searched = random_adaptive(2)
    limits = Limits((Settled(), Settled(True, None, heads), Settled(heads=(None,) * 4)), (None, 5, None))
    model = compile_model(searched.masked, (*limiting_passes(limits), *passes_for(find_target("cpu"))))
    images = images_for(searched)
    for conditional in (False, True):
        path = written(model, Way(conditional), tmp_path / "m.onnx")
        found, expected = run_images(ort.load(path), images, "m"), interpret(model, images)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * max(1.0, np.abs(expected).max()))


def test_off_branches_stand_in_ifs_that_own_no_weights(tmp_path):
    model = compile_model(vector(VECTORS[0]).searched.masked, passes_for(find_target("cpu")))
    graph = onnx.load(str(written(model, Way(conditional=True), tmp_path / "m.onnx"))).graph
    bodies = [a.g for node in graph.node if node.op_type == "If" for a in node.attribute]
    assert len(bodies) == 2 * 2 * 5
    assert not any(body.initializer for body in bodies)
    assert not [node for node in graph.node if node.op_type == "Gemm" and ".5.mlp" in node.name]


@pytest.mark.parametrize("name", VECTORS)
def test_heads_alone_for_two_threads_count_what_the_file_computes(name):
    """The queries of a head alone are cut for the threads only where nothing depends on the image."""
    target = replace(find_target("cpu", threads=2), max_heads=1)
    model = compile_model(vector(name).searched.masked, passes_for(target))
    file, counted = oir.to_proto(emit(model, target)), count(model, target)
    assert (macs(file), parameters(file)) == (counted.macs, counted.params)


@pytest.mark.parametrize("way", ["masked", "conditional+capacity"])
@pytest.mark.parametrize("name", VECTORS)
def test_macs_and_parameters_are_those_of_the_file(name, way, tmp_path):
    released, how = vector(name), WAYS[way]
    masked = released.searched.masked
    limits = limits_of(observe(released.searched, released.images)[1], masked, 0.5)
    first = limiting_passes(limits) if how.capacity else ()
    model = compile_model(masked, (*first, *passes_for(find_target("cpu"))))
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(written(model, how, tmp_path / "m.onnx")))).graph
    counted = count(model, find_target("cpu"))
    assert sum(int(np.prod(array.dims)) for array in graph.initializer) == counted.params
    assert file_macs(graph, {}) == counted.macs


def file_macs(graph: onnx.GraphProto, outer: dict[str, list[int]]) -> int:
    shapes = dict(outer)
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
    shapes |= {array.name: list(array.dims) for array in graph.initializer}
    macs = 0
    for node in graph.node:
        macs += sum(file_macs(a.g, shapes) for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
        if node.op_type == "Gemm":
            macs += int(np.prod(shapes[node.input[0]])) * shapes[node.output[0]][1]
        elif node.op_type == "MatMul":
            macs += int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][-1]
        elif node.op_type == "Conv":
            macs += int(np.prod(shapes[node.output[0]])) * int(np.prod(shapes[node.input[1]][1:]))
    return macs
