"""Half precision in the graph: what is computed in it, what is not, and how near the reference that stays."""

from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as oir
import pytest

from slimc import ir
from slimc.backends import ort
from slimc.backends.base import run_images
from slimc.compiler.load import load_network
from slimc.compiler.pipeline import compile_model, passes_for
from slimc.emit.file import check_file
from slimc.emit.graph import GraphBuilder
from slimc.emit.model import emit
from slimc.emit.precision import (
    MAX_SUBNORMAL_LOSS,
    TOLERANCE,
    Largest,
    break_attention_fusion,
    find_precision,
    stored_in_half,
    to_half,
    unfit_for_half,
)
from slimc.errors import OptionError
from slimc.evaluate.compare import compare_with
from slimc.evaluate.logits import compare
from slimc.files.reference import read_reference, reference_path
from slimc.ir import FloatArray
from slimc.targets.target import find_target
from tests.artefacts import OPTIONS, VECTORS, exported, half
from tests.vectors import arrays

FLOAT, HALF = oir.DataType.FLOAT, oir.DataType.FLOAT16
SM89 = find_target("sm89")


def slim_model(vector: str, batch_size: int = 1) -> oir.Model:
    """The slim model of a vector in float32, in memory."""
    searched = load_network(VECTORS[vector], OPTIONS.get(vector))
    return emit(compile_model(searched.masked, passes_for(SM89)), SM89, batch_size=batch_size)


def logits_of(model: oir.Model, path: Path, images: FloatArray) -> FloatArray:
    """What ONNX Runtime makes of `images`, every result in half precision rounded."""
    oir.save(model, path)
    check_file(path)
    return run_images(ort.load(path, threads=1, rounded=True), images, path.name)


def types_of(model: oir.Model, kind: str) -> set[oir.DataType | None]:
    """Types of the results of every operator of a kind."""
    return {node.outputs[0].dtype for node in model.graph if node.op_type == kind}


def test_products_are_half_and_what_must_not_be_is_not():
    model = slim_model("channel")
    to_half(model, "fp16")
    assert types_of(model, "Gemm") == types_of(model, "MatMul") == {HALF}
    assert {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)} == {FLOAT}
    assert [value.name for value in model.graph.outputs] == ["logits"]
    for kind in ("LayerNormalization", "Softmax", "Erf"):
        readers = [node for node in model.graph if node.op_type == kind]
        assert readers
        assert {value.dtype for node in readers for value in node.inputs if value is not None} == {FLOAT}
    residuals = [node for node in model.graph if str(node.outputs[0].name).endswith(".residual")]
    assert len(residuals) == 8
    assert {node.outputs[0].dtype for node in residuals} == {FLOAT}


def test_every_weight_of_a_product_is_stored_in_half():
    model = slim_model("channel")
    to_half(model, "fp16")
    weights = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert {
        dtype for name, dtype in weights.items() if ".norm" not in name and "pos_embed" not in name and name[0] == "b"
    } == {HALF}
    assert all(value.uses() for value in model.graph.initializers.values())


def test_a_product_that_is_read_in_both_precisions_is_valid(tmp_path):
    graph = GraphBuilder(17)
    images = graph.input("images", (2, 4))
    product = graph.linear(images, ir.Linear(np.eye(4, dtype=np.float32)), "first")
    probabilities = graph.softmax(product, "softmax")
    again = graph.linear(product, ir.Linear(np.ones((4, 4), np.float32)), "second")
    outputs = [graph.add(probabilities, again, "sum")]
    model = oir.Model(graph.build(outputs, "test"), ir_version=8)
    to_half(model, "fp16")
    oir.save(model, tmp_path / "both.onnx")
    check_file(tmp_path / "both.onnx")
    assert (
        sum(node.op_type == "Cast" for node in model.graph) == 3
    )  # the images; and each product where it is read in float32


@pytest.mark.parametrize("vector", ["channel", "heads", "patches", "empty", "digits"])
def test_float16_stays_within_one_per_cent_of_the_spread(vector, tmp_path):
    folder = VECTORS[vector].parent.name
    content = arrays(folder)
    expected = content["logits"][:32]
    model = slim_model(vector)
    assert to_half(model, "fp16") == ()
    found = compare(logits_of(model, tmp_path / "half.onnx", content["images"][:32]), expected, TOLERANCE["fp16"])
    assert found.passed
    assert found.clear > 0
    assert found.clear_agreement == 1.0
    assert found.max_rel > 1e-6, "the check would not notice if nothing were half"


@pytest.mark.parametrize("vector", ["deit", "lvvit", "gates", "tokens", "t2t"])
def test_networks_that_choose_stay_within_it_too_when_they_choose_the_same(vector, tmp_path):
    model = exported(vector, tmp_path)
    found, agreement = compare_with(
        half(model, tmp_path),
        read_reference(reference_path(model)),
        TOLERANCE["fp16"],
        open_model=partial(ort.load, rounded=True),
        precision="fp16",
        source=model.name,
    )
    assert found.passed
    assert found.clear_agreement == 1.0
    assert agreement is not None


@pytest.mark.parametrize("vector", ["channel", "empty"])
def test_bfloat16_runs_on_a_cpu_without_its_kernels_and_rounds_all_the_same(vector, tmp_path):
    content = arrays(VECTORS[vector].parent.name)
    model = slim_model(vector)
    to_half(model, "bf16")
    found = compare(logits_of(model, tmp_path / "half.onnx", content["images"]), content["logits"], TOLERANCE["bf16"])
    assert found.passed
    assert found.max_rel > TOLERANCE["fp16"] / 10, "bfloat16 has three bits fewer than float16"


def test_a_weight_that_float16_cannot_hold_stays_float32_and_is_named(tmp_path):
    content = arrays("vitslim-a-channel-0.7")
    model = slim_model("channel")
    exact = logits_of(model, tmp_path / "full.onnx", content["images"])
    weight = model.graph.initializers["blocks.1.mlp.fc1.weight"]
    rest = model.graph.initializers["blocks.1.norm2.weight"], model.graph.initializers["blocks.1.norm2.bias"]
    factor = np.float32(2.0**20)
    for value, scale in ((weight, factor), *((norm, 1 / factor) for norm in rest)):
        assert value.const_value is not None
        value.const_value = oir.tensor(value.const_value.numpy() * scale)
    kept = to_half(model, "fp16")
    assert [item.name for item in kept] == ["blocks.1.mlp.fc1.weight"]
    assert "beyond 65504" in kept[0].reason
    assert model.graph.initializers["blocks.1.mlp.fc1.weight"].dtype == FLOAT
    product = next(node for node in model.graph if node.name == "blocks.1.mlp.fc1")
    assert product.outputs[0].dtype == FLOAT
    assert compare(logits_of(model, tmp_path / "kept.onnx", content["images"]), exact, TOLERANCE["fp16"]).passed


def test_products_whose_values_float16_cannot_hold_with_a_margin_stay_float32_and_are_named():
    model = slim_model("channel")
    names = {str(value.name) for value in stored_in_half(model, "fp16")}
    assert {"blocks.1.mlp.fc1", "blocks.1.mlp.act", "blocks.1.attn.scores"} <= names
    assert not {"blocks.1.attn.residual", "blocks.1.mlp.residual"} & names
    fits, exceeds = Largest(16_376.0), Largest(16_377.0)
    assert to_half(slim_model("channel"), "fp16", {"blocks.1.mlp.fc1": fits}) == ()
    kept = to_half(model, "fp16", {"blocks.1.mlp.fc1": exceeds, "blocks.2.mlp.act": Largest(np.inf)})
    assert [(item.name, item.reason) for item in kept] == [
        (
            "blocks.1.mlp.fc1",
            "results up to 1.6e+04 on the reference inputs, float16 holds 65504: less than 4 times that",
        ),
        ("blocks.2.mlp.fc2", "operands up to inf on the reference inputs, float16 holds 65504"),
    ]
    types = {node.name: node.outputs[0].dtype for node in model.graph if node.op_type == "Gemm"}
    assert {name for name, dtype in types.items() if dtype == FLOAT} == {"blocks.1.mlp.fc1", "blocks.2.mlp.fc2"}
    assert to_half(slim_model("channel"), "bf16", {"blocks.1.mlp.fc1": exceeds}) == ()


def test_no_margin_is_kept_for_a_constant_that_is_added():
    assert to_half(slim_model("channel"), "fp16", {"blocks.1.mlp.fc1": Largest(10_000.0, 25_000.0)}) == ()
    assert len(to_half(slim_model("channel"), "fp16", {"blocks.1.mlp.fc1": Largest(10_000.0, 26_000.0)})) == 1


def test_a_constant_that_float16_cannot_hold_is_no_weight_to_report(tmp_path):
    model = oir.load(exported("t2t", tmp_path))
    assert to_half(model, "fp16") == ()


def test_what_float16_cannot_hold():
    fine = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    assert unfit_for_half(fine) is None
    assert unfit_for_half(np.zeros((3, 3), np.float32)) is None
    assert unfit_for_half(np.zeros((0, 3), np.float32)) is None
    assert unfit_for_half(fine * 2.0**-8) is None
    assert "beyond 65504" in str(unfit_for_half(fine * 1e5))
    assert "subnormals" in str(unfit_for_half(fine * 1e-6))
    few = fine.copy()
    few[0, 0] = 1e-7  # lost, but nobody will miss it
    assert unfit_for_half(few) is None
    assert MAX_SUBNORMAL_LOSS < 0.01


def test_breaking_the_fusion_of_attention_changes_no_logit(tmp_path):
    images = arrays("vitslim-a-channel-0.7")["images"]
    model = slim_model("channel")
    plain = logits_of(model, tmp_path / "plain.onnx", images)
    break_attention_fusion(model.graph)
    assert sum(node.op_type == "Relu" for node in model.graph) == 4
    np.testing.assert_array_equal(logits_of(model, tmp_path / "broken.onnx", images), plain)


def test_an_unknown_precision_names_those_that_are_known():
    assert find_precision("bf16") == "bf16"
    with pytest.raises(OptionError, match=r"fp8.*fp32, fp16, bf16"):
        find_precision("fp8")
