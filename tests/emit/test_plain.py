"""What plain vision transformers have beyond the three systems, emitted: it means in ONNX Runtime what the IR means."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as oir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimc import ir
from slimc.compiler.pipeline import compile_model, passes_for
from slimc.emit.model import emit
from slimc.emit.precision import to_half
from slimc.emit.rounding import round_results
from slimc.ir.interpret.model import trace
from slimc.targets.count import count
from slimc.targets.target import find_target, for_half_precision
from tests.onnx_files import emitted, inferred_shapes, macs, parameters, written_shapes
from tests.plain_networks import images_of, plain_network, plain_networks, plain_rewritten_networks

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


# What passes refuse is tested with them: masks before norms of q and k, patches that leave keys with a bias.
searched = plain_networks(qk_norm=None, masks="binary", token_masks=False)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # an inner norm of no hidden unit at all
@settings(max_examples=60)
@given(searched, targets, batches)
def test_what_is_left_of_networks_means_the_same(network, target, batch_size):
    slim = compile_model(network, passes_for(find_target(target)))
    model, found = emitted(slim, target=target, batch_size=batch_size), count(slim, find_target(target))
    assert_means(network, model, batch_size)
    assert (found.macs * batch_size, found.params) == (macs(model), parameters(model))


@settings(max_examples=60)
@given(networks, targets, st.sampled_from(("fp16", "bf16")))
def test_networks_in_half_precision_are_valid_and_stay_near(network, target, precision):
    model = emit(network, for_half_precision(find_target(target)))
    to_half(model, precision)
    onnx.checker.check_model(oir.to_proto(model), full_check=True)
    round_results(model)
    images = images_of(network, 1)
    expected, found = trace(network, images).outputs, outputs_of(oir.to_proto(model), images)
    for name, values in expected.items():
        # Narrow norms enlarge what rounding did before them; a wrong type or operand is as large as the values.
        assert found[name].dtype == np.float32
        error = np.linalg.norm(found[name] - values) / np.linalg.norm(values)
        assert error < (0.1 if precision == "fp16" else 0.5)


def operators(network: ir.Model, **options) -> Counter[str]:
    """How often every operator stands in the graph of `network`."""
    return Counter(node.op_type for node in emitted(network, **options).graph.node)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("rotation", ["shared", "per head"])
def test_queries_and_keys_of_all_heads_are_turned_at_once(rotation, ragged):
    options = {"depth": 1, "heads": 4, "ragged": ragged, "norm": "rms", "final_norm": None}
    turned, plain = (operators(plain_network(0, rotation=kind, **options), opset=20) for kind in (rotation, None))
    more = {kind: turned[kind] - plain[kind] for kind in ("Mul", "Add", "Sub", "RotaryEmbedding", "Gemm")}
    assert more == {"Mul": 4, "Add": 1, "Sub": 1, "RotaryEmbedding": 0, "Gemm": 0}
    rotary = operators(plain_network(0, rotation=rotation, **options), target="cpu")
    assert rotary["RotaryEmbedding"] == (4 if ragged else 2)


def test_rows_that_two_outputs_read_are_normalised_once():
    options = {"depth": 1, "norm": "rms", "prefix": 2}
    assert operators(plain_network(0, outputs=("logits", "tokens"), **options))["LayerNormalization"] == 3
    pooled = plain_network(0, outputs=("logits", "tokens", "tokens:nchw", "features"), pool="avg", **options)
    assert operators(pooled)["LayerNormalization"] == 1
    overlapping = plain_network(0, outputs=("features", "tokens"), pool="token+avg", **options)
    assert operators(overlapping)["LayerNormalization"] == 1


def test_nothing_behind_the_last_block_that_is_read_is_emitted():
    network = plain_network(0, depth=3, outputs=("blocks.0", "blocks.1"))
    graph = emitted(network).graph
    assert not [tensor.name for tensor in graph.initializer if tensor.name.startswith(("blocks.2", "norm", "head"))]
    assert [output.name for output in graph.output] == ["blocks.0", "blocks.1"]


@pytest.mark.parametrize(
    ("features", "operator"),
    [
        ({"norm": "rms"}, "SimplifiedLayerNormalization"),
        ({"activation": "gelu_tanh"}, "FastGelu"),
        ({"activation": "quick_gelu"}, "QuickGelu"),
        ({"activation": "silu", "gated": True}, "QuickGelu"),
    ],
)
def test_runtimes_recognise_chains_of_operators(features, operator, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    content = emitted(plain_network(0, depth=1, **features)).SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    assert operator in {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
