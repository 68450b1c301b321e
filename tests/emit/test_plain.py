"""What plain vision transformers have beyond the three systems, emitted: it means in ONNX Runtime what the IR means."""

import numpy as np
import onnx
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st

from slimc import ir
from slimc.ir.interpret.model import trace
from slimc.targets.count import count
from slimc.targets.target import find_target
from tests.onnx_files import emitted, inferred_shapes, macs, parameters, written_shapes
from tests.plain_networks import images_of, plain_networks, plain_rewritten_networks

targets = st.sampled_from(("generic", "cpu", "sm89"))
batches = st.sampled_from((1, 3))
opsets = st.sampled_from((None, 17, 20, 23))
networks = plain_networks() | plain_rewritten_networks()


def outputs_of(model: onnx.ModelProto, images: ir.FloatArray) -> dict[str, ir.FloatArray]:
    """What `model` gives for one batch of images in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images.astype(np.float32)}), strict=True))


def assert_means(network: ir.Model, model: onnx.ModelProto, batch_size: int) -> None:
    """`model` is valid ONNX and gives the outputs of `network`, to float32 rounding."""
    onnx.checker.check_model(model, full_check=True)
    images = images_of(network, batch_size)
    expected, found = trace(network, images).outputs, outputs_of(model, images)
    assert list(found) == list(expected) == [output.name for output in network.outputs]
    for name, values in expected.items():
        spread = max(1.0, float(np.abs(values).max()))
        np.testing.assert_allclose(found[name], values, rtol=0, atol=2e-5 * spread, err_msg=name)


@settings(max_examples=150)
@given(networks, targets, batches, opsets)
def test_networks_in_onnx_runtime(network, target, batch_size, opset):
    assert_means(network, emitted(network, target=target, batch_size=batch_size, opset=opset), batch_size)


@settings(max_examples=100)
@given(networks, targets, batches)
def test_counts_are_those_of_the_file(network, target, batch_size):
    model, found = emitted(network, target=target, batch_size=batch_size), count(network, find_target(target))
    assert (found.macs * batch_size, found.params) == (macs(model), parameters(model))


@given(networks, targets, batches, opsets)
def test_every_shape_is_static_and_the_one_that_is_inferred(network, target, batch_size, opset):
    model = emitted(network, target=target, batch_size=batch_size, opset=opset)
    inferred, written = inferred_shapes(model), written_shapes(model)
    assert {output for node in model.graph.node for output in node.output} <= set(written)
    assert {name: inferred[name] for name in written} == written
