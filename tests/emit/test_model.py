"""The emitted ONNX model means what the IR means, with static shapes, stable names and the same bytes every time."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimc import ir
from slimc.compiler.pipeline import compile_model, passes_for
from slimc.emit.model import OPSETS
from slimc.ir.interpret.model import interpret
from slimc.targets.target import find_target
from tests.networks import dense_networks, images_for, masked_networks, soft_networks
from tests.onnx_files import emitted, inferred_shapes, run_onnx, written_shapes

targets = st.sampled_from(("generic", "cpu", "sm86"))
batches = st.integers(1, 4)
opsets = st.sampled_from((17, 20, 23))


def compiled(network: ir.Model, target: str) -> ir.Model:
    return compile_model(network, passes_for(find_target(target)))


def assert_onnx_means(network: ir.Model, model: onnx.ModelProto, batch_size: int) -> None:
    """`model` is valid ONNX and gives the logits of `network`, to float32 rounding."""
    onnx.checker.check_model(model, full_check=True)
    images = images_for(network, batch_size).astype(np.float32)
    expected = interpret(network, images)
    np.testing.assert_allclose(run_onnx(model, images), expected, rtol=0, atol=2e-5 * max(1.0, np.abs(expected).max()))


@settings(max_examples=60)
@given(masked_networks(), targets, batches, opsets)
def test_slim_networks_in_onnx_runtime(network, target, batch_size, opset):
    model = emitted(compiled(network, target), target=target, batch_size=batch_size, opset=opset)
    assert_onnx_means(network, model, batch_size)


@given(masked_networks() | soft_networks() | dense_networks(), batches, opsets)
def test_networks_with_their_masks_in_onnx_runtime(network, batch_size, opset):
    assert_onnx_means(network, emitted(network, batch_size=batch_size, opset=opset), batch_size)


@given(masked_networks(), targets, batches, opsets)
def test_every_shape_is_static_and_the_one_that_is_inferred(network, target, batch_size, opset):
    model = emitted(compiled(network, target), target=target, batch_size=batch_size, opset=opset)
    inferred, written = inferred_shapes(model), written_shapes(model)
    outputs = {output for node in model.graph.node for output in node.output}
    assert outputs <= set(written)
    assert {name: inferred[name] for name in written} == written
    assert all(size > 0 for shape in written.values() for size in shape)


@given(masked_networks(), targets, batches)
def test_input_and_output_are_named_and_float32(network, target, batch_size):
    graph = emitted(compiled(network, target), target=target, batch_size=batch_size).graph
    ends = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert ends == {"images": onnx.TensorProto.FLOAT, "logits": onnx.TensorProto.FLOAT}
    shapes = written_shapes(emitted(compiled(network, target), target=target, batch_size=batch_size))
    assert shapes["images"] == (batch_size, 3, *network.image)
    assert shapes["logits"] == (batch_size, network.classes)


@given(masked_networks(), targets)
def test_initializers_are_used_float32_and_named_by_modules_of_the_checkpoint(network, target):
    graph = emitted(compiled(network, target), target=target).graph
    used = {name for node in graph.node for name in node.input}
    roots = ("patch_embed.", "pos_embed.", "cls_token", "blocks.", "norm.", "pre_logits.", "head.", "head_dist.")
    for tensor in graph.initializer:
        assert tensor.name in used
        assert tensor.name.startswith(roots)
        assert tensor.data_type == onnx.TensorProto.FLOAT


@given(masked_networks())
def test_slim_graphs_hold_no_mask_and_no_multiplication_by_one(network):
    graph = emitted(compiled(network, "generic"), opset=20).graph
    assert [node.name for node in graph.node if node.op_type == "Mul"] == []


@given(masked_networks(), targets, batches)
def test_the_same_network_gives_the_same_bytes(network, target, batch_size):
    first, second = (
        emitted(compiled(network, target), target=target, batch_size=batch_size).SerializeToString() for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("opset", OPSETS)
@given(network=dense_networks())
@settings(max_examples=3)
def test_every_opset_that_is_offered_is_valid(opset, network):
    model = emitted(network, opset=opset)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", opset)]
    assert_onnx_means(network, model, 1)
