import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from slimc.cli.results import export_json
from slimc.compiler.adaptive import Adaptive, choose_adaptive, find_adaptive
from slimc.compiler.export import export_network
from slimc.compiler.limits import Limits
from slimc.compiler.load import load_network
from slimc.compiler.options import CompileOptions
from slimc.compiler.verify import Against, verify_artefact
from slimc.errors import OptionError
from slimc.evaluate.gate_decisions import Exactness
from slimc.files.metadata import read_metadata
from slimc.targets.target import find_target
from tests.command_line import slimc
from tests.gated import SMALL, arguments, random_adaptive, random_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint and a folder of pictures."""
    directory: Path = tmp_path_factory.mktemp("adaptive")
    checkpoint = random_checkpoint(seed=4)
    content = {"state_dict": dict(checkpoint.state), "args": argparse.Namespace(**arguments(SMALL))}
    torch.save(content, directory / "ada.pth.tar")
    (directory / "pictures").mkdir()
    for i, picture in enumerate(np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)):
        Image.fromarray(picture).save(directory / "pictures" / f"{i:02}.png")
    return directory


@pytest.mark.parametrize("text", ["masked", "conditional", "capacity", "conditional+capacity", "capacity+conditional"])
def test_every_way_is_understood(text):
    way = find_adaptive(text, None)
    assert (way.conditional, way.capacity) == ("conditional" in text, "capacity" in text)


@pytest.mark.parametrize("text", ["", "none", "masked+capacity", "capacity+capacity"])
def test_other_ways_are_refused(text):
    with pytest.raises(OptionError, match=r"--adaptive: .* expected masked, conditional"):
        find_adaptive(text, None)


def test_what_cannot_go_together_is_refused(folder):
    searched = random_adaptive()
    with pytest.raises(OptionError, match="--capacity-quantile: needs --adaptive capacity"):
        find_adaptive("masked", 0.5)
    with pytest.raises(OptionError, match="needs --batch-size 1, not 4"):
        choose_adaptive(Adaptive(conditional=True), searched, find_target("cpu"), 4, None)
    with pytest.raises(OptionError, match="--data DIR"):
        choose_adaptive(Adaptive(capacity=True), searched, find_target("cpu"), 1, None)
    outcome = slimc("export", folder / "ada.pth.tar", "--adaptive", "masked", "--dense")
    assert (outcome.code, "leave out --dense" in outcome.stderr) == (2, True)
    outcome = slimc("export", folder / "ada.pth.tar", "--capacity-quantile", "0.5")
    assert (outcome.code, "--capacity-quantile: needs" in outcome.stderr) == (2, True)


@pytest.mark.parametrize(
    ("target", "batch_size", "way"),
    [("cpu", 1, "conditional"), ("generic", 1, "conditional"), ("cpu", 2, "masked"), ("sm89", 1, "masked")],
)
def test_without_a_word_the_fastest_exact_way_is_gone(target, batch_size, way):
    found = choose_adaptive(None, random_adaptive(), find_target(target), batch_size, None)
    assert found is not None
    assert found.name == way


@pytest.mark.parametrize("way", ["masked", "conditional", "capacity", "conditional+capacity"])
def test_an_exported_model_is_verified_and_says_how_it_was_compiled(folder, tmp_path, way):
    options = CompileOptions(adaptive=find_adaptive(way, None), data=folder / "pictures", target=find_target("cpu"))
    report = export_network(load_network(folder / "ada.pth.tar"), tmp_path / "m.onnx", options, check_passes=True)
    assert isinstance(report.agreement, Exactness)
    assert report.agreement.exact >= 12
    assert report.agreement.images == 16
    metadata = read_metadata(report.onnx)
    assert metadata.details["adaptive"] == way
    assert ("limits" in metadata.details) == ("capacity" in way)
    assert export_json(report)["verify"]["choices"]["exact"] == report.agreement.exact
    assert verify_artefact(report.onnx, Against()).passed


def test_verify_against_the_checkpoint_counts_exact_images_and_the_error_on_the_others(folder, tmp_path):
    options = CompileOptions(adaptive=find_adaptive("conditional+capacity", 0.4), data=folder / "pictures")
    report = export_network(load_network(folder / "ada.pth.tar"), tmp_path / "m.onnx", options)
    verdict = verify_artefact(report.onnx, Against(folder / "ada.pth.tar", folder / "pictures"))
    assert verdict.passed
    assert isinstance(verdict.agreement, Exactness)
    assert verdict.agreement == report.agreement
    assert 0 < verdict.agreement.exact < verdict.agreement.images == 16
    assert verdict.agreement.worst_other_over_spread is not None
    assert verdict.agreement.worst_other_over_spread > 1e-3
    limits = Limits.from_json(read_metadata(report.onnx).details["limits"])
    assert any(capacity is not None for capacity in limits.capacities)


def test_inspect_tells_how_often_each_part_is_used_and_draws_it(folder, tmp_path):
    pictures = ("inspect", folder / "ada.pth.tar", "--data", folder / "pictures")
    outcome = slimc(*pictures, "--plot", tmp_path / "usage.png", "--json")
    assert outcome.code == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    assert found["images"] == 12
    assert [block["name"] for block in found["blocks"]] == ["blocks.0", "blocks.1", "blocks.2"]
    assert found["macs"]["quantiles"]["0%"] <= found["macs"]["mean"] <= found["macs"]["quantiles"]["100%"]
    assert found["macs"]["quantiles"]["100%"] <= found["macs"]["dense"] * 1.05
    with Image.open(tmp_path / "usage.png") as picture:
        assert picture.size[0] > 1000
    assert "MACs that the decisions of an image ask for" in slimc(*pictures).stdout


def test_inspect_refuses_pictures_where_nothing_is_decided(folder, tmp_path):
    (tmp_path / "m.onnx").touch()
    outcome = slimc("inspect", tmp_path / "m.onnx", "--data", folder / "pictures")
    assert outcome.code == 2
    assert "m.onnx is a model; expected an AdaViT checkpoint" in outcome.stderr
