"""TensorRT-RTX builds networks that decide for each image, ahead of time."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slimc.compiler.adaptive import find_adaptive
from slimc.compiler.engine import EngineOptions, EngineReport, build_engine
from slimc.compiler.export import export_network
from slimc.compiler.load import load_network
from slimc.compiler.options import CompileOptions
from slimc.evaluate.gate_decisions import Exactness
from slimc.targets.target import find_target
from tests.gated import DATA, VECTORS

pytest.importorskip("tensorrt_rtx")


def build(name: str, way: str, directory: Path) -> EngineReport:
    side = 224 if "t2t" in name else 56
    for i, picture in enumerate(np.random.default_rng(0).integers(0, 256, (4, side, side, 3), np.uint8)):
        Image.fromarray(picture).save(directory / f"{i}.png")
    model = directory / "model.onnx"
    options = CompileOptions(adaptive=find_adaptive(way, None), data=directory, target=find_target("sm89"))
    export_network(load_network(DATA / name / "checkpoint.pth"), model, options)
    return build_engine(model, directory / "model.engine", EngineOptions("tensorrt-rtx", ("sm89",), "fp16"))


@pytest.mark.parametrize("way", ["masked", "capacity"])
@pytest.mark.parametrize("name", VECTORS)
def test_masked_and_capacity_build_in_half_precision_with_fused_attention(name, way, tmp_path):
    report = build(name, way, tmp_path)
    assert report.engine.stat().st_size > 500_000
    assert all(block.fused == block.attentions for block in report.facts.blocks)
    # Of four pictures none may use some attention, which capacity then leaves out.
    attentions = sum(block.attentions for block in report.facts.blocks)
    assert attentions == 6 if way == "masked" else attentions >= 2
    assert report.graph_comparison is not None
    assert report.graph_comparison.passed
    assert isinstance(report.agreement, Exactness)
    assert report.agreement.agreement >= 0.98


def test_conditional_builds_too(tmp_path):
    report = build(VECTORS[1], "conditional", tmp_path)
    assert report.graph_comparison is not None
    assert report.graph_comparison.passed
    assert report.engine.stat().st_size > 500_000
