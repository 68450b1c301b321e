"""Engines: built for real, described beside the plan, and refused where they do not fit."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as oir
import pytest

from slimc.compiler.load import load_network
from slimc.errors import MismatchError, MissingError, ModelFileError, OptionError
from slimc.files.reference import Reference, read_reference, reference_path, write_reference
from tests.artefacts import VECTORS, exported

pytest.importorskip("tensorrt_rtx", reason="builds engines with TensorRT-RTX")

from slimc.backends import cuda, tensorrt_rtx
from slimc.backends.choose import open_session
from slimc.backends.engine_file import facts_path, read_engine
from slimc.compiler.engine import EngineOptions, build_engine, build_from_network, choose_backend

RTX_FP16 = EngineOptions(backend="tensorrt-rtx", targets=("sm89",), precision="fp16")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return exported("channel", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(model):
    """An engine that nobody changes."""
    path = model.with_name("kept.engine")
    build_engine(model, path, RTX_FP16)
    return path


def test_the_engine_comes_with_its_description_and_its_reference(model, tmp_path):
    output = tmp_path / "small.engine"
    report = build_engine(model, output, RTX_FP16)
    data, facts = read_engine(output)
    assert facts == report.facts
    assert facts.backend == "tensorrt-rtx"
    assert (facts.targets, facts.precision, facts.variant) == (("sm89",), "fp16", "slim")
    assert [(spec.name, spec.shape) for spec in facts.inputs] == [("images", (1, 3, 56, 56))]
    assert [(spec.name, spec.shape) for spec in facts.outputs] == [("logits", (1, 10))]
    assert facts.plan_bytes == len(data) == output.stat().st_size
    assert len(facts.kernels) >= 20
    assert all(block.fused == block.attentions == 1 for block in facts.blocks)
    assert report.graph_comparison is not None
    assert report.graph_comparison.passed
    copied = read_reference(reference_path(output))
    np.testing.assert_array_equal(copied.logits, read_reference(reference_path(model)).logits)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "small.engine",
        "small.engine.json",
        "small.reference.npz",
    ]


def test_a_checkpoint_becomes_an_engine_in_one_go(tmp_path):
    output = tmp_path / "small.engine"
    options = EngineOptions(backend="tensorrt-rtx", targets=("sm86",), precision="fp16")
    report = build_from_network(load_network(VECTORS["empty"]), output, options, batch_size=2)
    assert report.facts.inputs[0].shape == (2, 3, 56, 56)
    assert reference_path(output).is_file()


def test_broken_fusion_is_reported_with_its_reason(model, tmp_path):
    options = EngineOptions("tensorrt-rtx", ("sm89",), "fp16", fused_attention=False)
    blocks = build_engine(model, tmp_path / "small.engine", options).facts.blocks
    assert [block.fused for block in blocks] == [0] * 4
    assert {reason for block in blocks for reason in block.lost} == {"switched off by --no-fused-attention"}


def test_bfloat16_builds_and_float32_says_why_nothing_is_fused(model, tmp_path):
    options = EngineOptions("tensorrt-rtx", ("sm80",), "bf16")
    assert all(block.fused for block in build_engine(model, tmp_path / "b.engine", options).facts.blocks)
    exact = build_engine(model, tmp_path / "f.engine", EngineOptions("tensorrt-rtx", ("sm80",), "fp32"))
    assert all("float32" in reason for block in exact.facts.blocks for reason in block.lost)
    assert exact.graph_comparison is None


def test_without_a_target_that_of_the_export_is_taken(model, tmp_path):
    if cuda.gpu_missing() is None:
        pytest.skip("this machine's GPU is the target")
    report = build_engine(model, tmp_path / "m.engine", EngineOptions("tensorrt-rtx", (), "fp16"))
    assert report.facts.targets == ("sm89",)
    assert "GPU" in report.unchecked


def test_nothing_is_written_where_the_build_fails(model, tmp_path):
    with pytest.raises(ModelFileError, match=r"channel\.onnx: TensorRT-RTX cannot build it"):
        build_engine(model, tmp_path / "m.engine", EngineOptions("tensorrt-rtx", ("sm75",), "fp32"))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_computes_something_else_is_not_built(model, tmp_path):
    copy = tmp_path / "model.onnx"
    copy.write_bytes(model.read_bytes())
    right = read_reference(reference_path(model))
    write_reference(reference_path(copy), Reference(right.images, {"logits": right.logits[::-1].copy()}, right.facts))
    with pytest.raises(MismatchError, match="not written: the graph differs"):
        build_engine(copy, tmp_path / "m.engine", RTX_FP16)
    assert not (tmp_path / "m.engine").exists()


def test_models_that_are_not_ours_and_double_conversion_are_refused(model, tmp_path):
    with pytest.raises(OptionError, match=r"expected \.engine"):
        build_engine(model, tmp_path / "m.plan", RTX_FP16)
    with pytest.raises(ModelFileError, match="no such file"):
        build_engine(tmp_path / "none.onnx", tmp_path / "m.engine", RTX_FP16)
    foreign = tmp_path / "foreign.onnx"
    content = oir.load(model)
    content.metadata_props.clear()
    oir.save(content, foreign)
    with pytest.raises(ModelFileError, match="no slimc metadata"):
        build_engine(foreign, tmp_path / "m.engine", RTX_FP16)
    content = oir.load(model)
    content.metadata_props["slimc.precision"] = "fp16"
    oir.save(content, foreign)
    with pytest.raises(OptionError, match=r"--precision fp16: .* is fp16 already"):
        build_engine(foreign, tmp_path / "m.engine", RTX_FP16)


def copy_of(engine: Path, directory: Path) -> Path:
    """A copy that may be damaged."""
    path = directory / "copy.engine"
    path.write_bytes(engine.read_bytes())
    facts_path(path).write_text(facts_path(engine).read_text())
    return path


def test_truncated_damaged_and_exchanged_plans_are_told_apart(engine, tmp_path):
    path = copy_of(engine, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelFileError, match="truncated"):
        open_session(path)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelFileError, match="damaged"):
        open_session(path)
    path.write_bytes(data + b"more")
    with pytest.raises(ModelFileError, match="another engine"):
        open_session(path)


def test_a_model_for_cpus_is_refused_with_the_way_out(tmp_path):
    model = exported("channel", tmp_path, target="cpu")
    with pytest.raises(OptionError, match=r"channel\.onnx: was exported for CPUs; .* slimc export --target sm89"):
        build_engine(model, tmp_path / "m.engine", RTX_FP16)
    assert not (tmp_path / "m.engine").exists()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"backend": 3}', "no json"])
def test_a_description_that_is_none_is_refused(text, engine, tmp_path):
    path = copy_of(engine, tmp_path)
    facts_path(path).write_text(text)
    with pytest.raises(ModelFileError, match="not the description of an engine"):
        read_engine(path)
    facts_path(path).unlink()
    with pytest.raises(ModelFileError, match="missing; slimc build-engine writes it"):
        read_engine(path)
    with pytest.raises(ModelFileError, match="no such engine"):
        read_engine(tmp_path / "none.engine")


def test_an_engine_of_another_version_is_refused(engine, tmp_path):
    path = copy_of(engine, tmp_path)
    values = json.loads(facts_path(path).read_text())
    facts_path(path).write_text(json.dumps({**values, "version": "0.9"}))
    with pytest.raises(ModelFileError, match=r"built with tensorrt-rtx 0\.9, here is .*; build it again"):
        open_session(path)


def test_running_needs_a_gpu_and_the_right_library(engine):
    with pytest.raises(OptionError, match="is an engine of tensorrt-rtx"):
        open_session(engine, "tensorrt")
    if cuda.gpu_missing() is not None:
        with pytest.raises(MissingError, match="needs a GPU"):
            open_session(engine)


def test_automatic_choice_is_rtx_where_there_is_no_gpu():
    if cuda.gpu_missing() is None:
        pytest.skip("this machine has a GPU")
    assert choose_backend("auto", ("sm89",)) is tensorrt_rtx
    with pytest.raises(MissingError):
        choose_backend("tensorrt", ())
    with pytest.raises(OptionError, match="builds no engines"):
        choose_backend("onnxruntime", ())
