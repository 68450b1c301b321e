"""Half precision spelled out in float32: what ONNX Runtime then computes is what rounding every result gives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as oir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from slimc import ir
from slimc.backends import ort
from slimc.backends.base import run_images
from slimc.emit.model import emit
from slimc.emit.precision import stored_in_half, to_half
from slimc.emit.rounding import is_half, round_results
from slimc.evaluate.ranges import largest_values
from slimc.ir.interpret.model import interpret
from slimc.targets.target import find_target
from tests.networks import Geometry, branches, dense_network, images_for, masked_networks

TYPES: dict[int, Any] = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}


def product_model(path: Path, kind: int, weight: ir.FloatArray) -> Path:
    """X W in half precision between float32 input and output, then the result times itself."""
    nodes = [
        helper.make_node("Cast", ["x"], ["x.half"], to=kind),
        helper.make_node("MatMul", ["x.half", "w"], ["y.half"]),
        helper.make_node("Cast", ["y.half"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["y.half", "y.half"], ["z.half"]),
        helper.make_node("Cast", ["z.half"], ["z"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 6]) for name in "yz"],
        [helper.make_tensor("w", kind, weight.shape, weight.astype(TYPES[kind]).tobytes(), raw=True)],
        value_info=[
            helper.make_tensor_value_info("x.half", kind, [4, 8]),
            *(helper.make_tensor_value_info(f"{name}.half", kind, [4, 6]) for name in "yz"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("scale", [1.0, 2.0**-20, 2.0**10])
def test_a_product_is_rounded_to_the_very_bits(kind, scale, tmp_path):
    # Whole numbers: their sums are exact in float32, in any order, and not in half precision.
    generator = np.random.default_rng(0)
    x = generator.integers(-60, 60, (4, 8)).astype(np.float32) * np.float32(scale)
    w = generator.integers(-60, 60, (8, 6)).astype(np.float32)
    half = TYPES[kind]
    with np.errstate(over="ignore", invalid="ignore"):
        y = (x.astype(half).astype(np.float32) @ w).astype(half).astype(np.float32)
        z = (y * y).astype(half).astype(np.float32)
    found = ort.load(product_model(tmp_path / "m.onnx", kind, w), rounded=True).run({"x": x})
    np.testing.assert_array_equal(found["y"], y)
    np.testing.assert_array_equal(found["z"], z)
    assert (y != x @ w).any(), "rounding shows"
    if kind == TensorProto.FLOAT16 and scale > 1:
        assert np.isinf(y).any(), "overflow shows"


def test_the_back_end_says_what_it_does(tmp_path):
    path = product_model(tmp_path / "m.onnx", TensorProto.FLOAT16, np.ones((8, 6), np.float32))
    assert ort.load(path, rounded=True).backend == f"{ort.load(path).backend}, half precision rounded"


def enlarged(network: ir.Model, power: int, block: int) -> ir.Model:
    """`network` with the hidden channels and values of a block 2^`power` times as large, the weights behind them smaller."""
    index = block % len(network.blocks)
    factor = 2.0**power
    old = network.blocks[index]
    attention, mlp = branches(old)

    def times(linear: ir.Linear) -> ir.Linear:
        return ir.Linear(linear.weight * factor, None if linear.bias is None else linear.bias * factor)

    heads = tuple(replace(head, value=times(head.value), output=head.output / factor) for head in attention.heads)
    new = replace(
        old,
        attention=replace(attention, heads=heads),
        mlp=replace(mlp, up=times(mlp.up), down=replace(mlp.down, weight=mlp.down.weight / factor)),
    )
    return replace(network, blocks=(*network.blocks[:index], new, *network.blocks[index + 1 :]))


def evaluated(model: oir.Model, images: ir.FloatArray) -> ir.FloatArray:
    """Logits [n, classes] by the evaluator of onnx, which rounds every result; the model's batch is one."""
    reference: Any = ReferenceEvaluator(oir.to_proto(model))
    with np.errstate(all="ignore"):
        return np.concatenate([reference.run(["logits"], {"images": image[None]})[0] for image in images])


@given(masked_networks(), st.integers(-2, 20), st.integers(0, 3), st.sampled_from(("generic", "sm89")))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_networks_with_large_weights_stay_finite_and_round_as_the_evaluator_does(
    tmp_path_factory, network, power, block, target
):
    path = tmp_path_factory.mktemp("m") / "m.onnx"
    network = enlarged(network, power, block)
    images = images_for(network).astype(np.float32)
    model = emit(network, find_target(target))
    names = [str(value.name) for value in stored_in_half(model, "fp16")]
    to_half(model, "fp16", largest_values(model, names, images))
    oir.save(model, path)
    found, expected = run_images(ort.load(path, rounded=True), images, "m"), evaluated(model, images)
    exact = interpret(network, images.astype(np.float64))
    assert np.isfinite(found).all()
    # Where they differ, they do by single roundings: of order of what rounding does to the logits at all.
    scale = np.abs(exact).max() + np.abs(exact - expected).max()
    assert np.abs(found - expected).max() <= 2e-2 * scale


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_is_left_holds_no_half_precision_but_in_casts(precision):
    network = dense_network(Geometry(2, 2, 4, 8, 6, (2, 2), (2, 2), 1, 3, True, False, 1.0), 0)
    model = emit(network, find_target("sm89"))
    before = {value.name: (value.dtype, value.shape) for value in (*model.graph.inputs, *model.graph.outputs)}
    assert not is_half(model)
    to_half(model, precision)
    assert is_half(model)
    round_results(model)
    half = {oir.DataType.FLOAT16, oir.DataType.BFLOAT16}
    kinds = {node.op_type for node in model.graph for value in node.outputs if value.dtype in half}
    assert kinds == {"Cast"}
    assert not half & {value.dtype for value in model.graph.initializers.values()}
    assert before == {value.name: (value.dtype, value.shape) for value in (*model.graph.inputs, *model.graph.outputs)}
    onnx.checker.check_model(oir.to_proto(model), full_check=True)
