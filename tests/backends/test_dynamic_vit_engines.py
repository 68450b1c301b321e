"""TensorRT-RTX builds networks that select tokens, ahead of time, with every attention fused."""

from pathlib import Path

import pytest

from slimc.backends.cuda import gpu_missing
from slimc.compiler.engine import EngineOptions, EngineReport, build_engine
from slimc.compiler.export import export_network
from slimc.compiler.load import load_network
from slimc.compiler.options import CompileOptions
from slimc.emit.precision import Precision
from slimc.evaluate.kept_patches import Agreement
from slimc.models.system import Variant
from slimc.targets.target import find_target
from tests.selecting import VECTORS, Vector

pytest.importorskip("tensorrt_rtx")


def build(vector: Vector, directory: Path, *, variant: Variant = "slim", batch_size: int = 1) -> EngineReport:
    model = directory / "model.onnx"
    options = CompileOptions(variant=variant, target=find_target("sm89"), batch_size=batch_size)
    export_network(load_network(vector.checkpoint, vector.options), model, options)
    return build_engine(model, directory / "model.engine", EngineOptions("tensorrt-rtx", ("sm89",), "fp16"))


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_slim_networks_build_in_half_precision_with_fused_attention(vector: Vector, batch_size: int, tmp_path: Path):
    report = build(vector, tmp_path, batch_size=batch_size)
    assert report.engine.stat().st_size > 1_000_000
    assert [(block.fused, block.attentions) for block in report.facts.blocks] == [(1, 1)] * len(report.facts.blocks)
    assert report.graph_comparison is not None
    assert report.graph_comparison.passed
    assert isinstance(report.agreement, Agreement)
    assert min(report.agreement.stages) >= 0.98


def test_a_selection_costs_a_dozen_kernels(tmp_path: Path):
    blocks = build(VECTORS[1], tmp_path).facts.blocks
    selecting = [blocks[i].kernels for i in (2, 4, 6)]
    others = [blocks[i].kernels for i in (1, 3, 5, 7)]
    assert max(selecting) - min(others) <= 12


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_masked_networks_build_too(vector: Vector, tmp_path: Path):
    report = build(vector, tmp_path, variant="masked")
    assert all(block.fused == 1 for block in report.facts.blocks)


@pytest.mark.gpu
@pytest.mark.skipif(gpu_missing() is not None, reason=str(gpu_missing()))
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_engines_that_select_compute_what_the_network_does(vector: Vector, precision: Precision, tmp_path: Path):
    model = tmp_path / "model.onnx"
    export_network(load_network(vector.checkpoint, vector.options), model, CompileOptions(target=find_target("sm89")))
    report = build_engine(model, tmp_path / "model.engine", EngineOptions("tensorrt-rtx", (), precision))
    assert report.comparison is not None, report.unchecked
    assert report.comparison.passed
