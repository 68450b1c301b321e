"""Half precision through the whole compiler: what float16 cannot hold stays float32, and verification shows the cost."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from slimc.backends import ort
from slimc.backends.base import run_images
from slimc.compiler.adaptive import find_adaptive
from slimc.compiler.compile import compile_network
from slimc.compiler.engine import EngineOptions, build_engine
from slimc.compiler.export import ExportReport, emit_onnx, export_network
from slimc.compiler.half import narrow
from slimc.compiler.load import load_network
from slimc.compiler.options import CompileOptions
from slimc.compiler.verify import Against, verify_artefact
from slimc.emit.file import write_model
from slimc.emit.precision import TOLERANCE, to_half
from slimc.errors import MismatchError
from slimc.evaluate.logits import compare
from slimc.files.reference import read_reference, reference_path
from slimc.ir import FloatArray
from slimc.models.system import Network
from slimc.targets.target import find_target
from tests.artefacts import OPTIONS, VECTORS
from tests.command_line import slimc

FP16 = CompileOptions(target=find_target("sm89"), precision="fp16")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vector's checkpoint whose block 1 has hidden activations of some 300 000."""
    content = torch.load(VECTORS["channel"], map_location="cpu", weights_only=False)
    weights = content["model"]
    for name, factor in (("mlp.fc1.weight", 1e4), ("mlp.fc1.bias", 1e4), ("mlp.fc2.weight", 1e-3)):
        weights[f"blocks.1.{name}"] *= factor
    weights["blocks.1.norm2.weight"] *= 10
    path = tmp_path_factory.mktemp("large") / "large.pth"
    torch.save(content, path)
    return path


def evaluated(path: Path, count: int = 4) -> FloatArray:
    """Logits of so many inputs of the reference by the evaluator of onnx, which rounds every result; at batch size 1."""
    model = onnx.load(str(path))
    images = read_reference(reference_path(path)).images[:count]
    evaluator: Any = ReferenceEvaluator(model)
    with np.errstate(all="ignore"):
        return np.concatenate([evaluator.run(["logits"], {"images": image[None]})[0] for image in images])


def exported(network: Network, path: Path, options: CompileOptions = FP16) -> ExportReport:
    return export_network(network, path, options)


@pytest.mark.parametrize("target", ["generic", "cpu", "sm89"])
def test_products_that_float16_cannot_hold_stay_float32_and_are_named(target, large, tmp_path):
    path = tmp_path / "m.onnx"
    report = exported(load_network(large), path, CompileOptions(target=find_target(target), precision="fp16"))
    assert list(report.kept_float32) == ["blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]
    assert (
        report.kept_float32["blocks.1.mlp.fc1"] == "results up to 3.5e+05 on the reference inputs, float16 holds 65504"
    )
    assert report.kept_float32["blocks.1.mlp.fc2"].startswith("operands up to 3")
    assert report.comparison is not None
    assert report.comparison.passed
    true = compare(evaluated(path), read_reference(reference_path(path)).logits, FP16.tolerance)
    assert true.passed
    assert abs(true.max_rel - report.comparison.max_rel) < 1e-2
    products = {node.output[0] for node in onnx.load(str(path)).graph.node if node.op_type == "Gemm"}
    assert {"blocks.0.mlp.fc1.float16", "blocks.1.mlp.fc1", "blocks.2.mlp.fc1.float16"} <= products


def test_the_same_inputs_give_the_same_bytes(large, tmp_path):
    network = load_network(large)
    first, second = (exported(network, tmp_path / f"{name}.onnx") for name in "ab")
    assert first.onnx.read_bytes() == second.onnx.read_bytes()
    assert dict(first.kept_float32) == dict(second.kept_float32)


def test_the_commands_tell_what_stays_float32(large, tmp_path):
    found = slimc("export", large, "-o", tmp_path / "m.onnx", "--fp16", "--json")
    assert found.code == 0
    assert set(json.loads(found.stdout)["kept_float32"]) == {"blocks.1.mlp.fc1", "blocks.1.mlp.fc2"}
    assert "blocks.1.mlp.fc1 stays float32: results up to 3.5e+05" in found.stderr


def overflowing(large: Path, path: Path) -> Path:
    """A float16 model whose hidden activations overflow, with its reference."""
    network = load_network(large)
    report = exported(network, path, CompileOptions(target=find_target("sm89")))
    model = emit_onnx(compile_network(network, FP16))
    to_half(model, "fp16")
    write_model(model, report.onnx)
    return path


def test_a_model_that_overflows_does_not_pass(large, tmp_path):
    path = overflowing(large, tmp_path / "m.onnx")
    assert np.isfinite(run_images(ort.load(path), read_reference(reference_path(path)).images, "m")).all(), (
        "ONNX Runtime computes in float32: if that has changed, rounding may be left to it"
    )
    verdict = verify_artefact(path, Against())
    assert not verdict.passed
    assert "NaN or infinite logits for 4 of 4 inputs" in verdict.failure
    assert verdict.backend.endswith("half precision rounded")
    found = slimc("verify", path)
    assert found.code == 1


def test_what_cannot_be_mended_is_not_built(large, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="builds engines with TensorRT-RTX")
    path = overflowing(large, tmp_path / "m.onnx")
    with pytest.raises(MismatchError, match=r"m\.engine: not written: NaN or infinite logits for 4 of 4 inputs"):
        build_engine(path, tmp_path / "m.engine", EngineOptions("tensorrt-rtx", ("sm89",)))
    assert not (tmp_path / "m.engine").exists()


def test_an_engine_keeps_the_same_products(large, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="builds engines with TensorRT-RTX")
    path = tmp_path / "m.onnx"
    exported(load_network(large), path, CompileOptions(target=find_target("sm89")))
    options = EngineOptions("tensorrt-rtx", ("sm89",), "fp16")
    kept = ["blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]
    report = build_engine(path, tmp_path / "m.engine", options)
    assert list(report.facts.kept_float32) == kept
    assert report.graph_comparison is not None
    assert report.graph_comparison.passed
    reference_path(path).unlink()
    assert list(build_engine(path, tmp_path / "n.engine", options).facts.kept_float32) == kept, "measured on noise"


def test_without_onnx_runtime_a_warning_says_that_nothing_was_measured(large, monkeypatch):
    monkeypatch.setattr(ort, "is_installed", lambda: False)
    model = emit_onnx(compile_network(load_network(large), FP16))
    narrowed = narrow(model, "fp16", None)
    assert not narrowed.kept
    assert "was not measured: onnxruntime is not installed" in narrowed.warnings[0]
    assert narrow(emit_onnx(compile_network(load_network(large), FP16)), "bf16", None).warnings == ()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("vector", VECTORS)
def test_an_evaluation_that_rounds_every_result_agrees_with_verification(vector, precision, tmp_path):
    path = tmp_path / "m.onnx"
    options = CompileOptions(target=find_target("sm89"), precision=precision)
    report = exported(load_network(VECTORS[vector], OPTIONS.get(vector)), path, options)
    assert not report.kept_float32
    assert report.comparison is not None
    assert report.comparison.passed
    reference = read_reference(reference_path(path))
    judged = run_images(ort.load(path, rounded=True), reference.images[:1], "m")
    true = evaluated(path, 1)
    # Both choose alike here, so that they differ by single roundings: the evaluator rounds before it adds a bias, too.
    assert np.abs(judged - true).max() <= TOLERANCE[precision] / 2 * report.comparison.spread
    if report.agreement is None:
        error = np.abs(true - reference.logits[:1]).max() / report.comparison.spread
        assert error <= TOLERANCE[precision]
        assert error - report.comparison.max_rel <= TOLERANCE[precision] / 2


@pytest.mark.parametrize("conditional", ["conditional", "masked"])
def test_a_product_that_only_some_images_run_stays_float32_too(conditional, tmp_path):
    content = torch.load(VECTORS["tokens"], map_location="cpu", weights_only=False)
    weights = content["state_dict"]
    for name, factor in (("fc1.weight", 1e4), ("fc1.bias", 1e4), ("fc2.weight", 1e-3)):
        for key in [key for key in weights if key.endswith(f"blocks.3.mlp.{name}")]:
            weights[key] *= factor
    path = tmp_path / "large.pth"
    torch.save(content, path)
    options = replace(FP16, adaptive=find_adaptive(conditional))
    report = exported(load_network(path), tmp_path / "m.onnx", options)
    assert list(report.kept_float32) == ["blocks.3.mlp.fc1", "blocks.3.mlp.fc2"]
    assert report.comparison is not None
    assert report.comparison.passed
