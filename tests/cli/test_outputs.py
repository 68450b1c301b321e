"""``--outputs`` on the command line: every command that compiles a checkpoint takes it, and says what came out."""

from pathlib import Path
from typing import Any

import pytest

from tests.artefacts import VECTORS
from tests.command_line import assert_refused, slimc, snapshot
from tests.digits import write_digits
from tests.models.test_folders import network, saved
from tests.schemas import check, parse

GIVEN = ("--outputs", "logits,features,blocks.0:nchw")
NAMES = ["logits", "features", "blocks.0:nchw"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(network("vit_tiny_patch16_224"), tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(network("vit_tiny_patch16_224", num_classes=0), tmp_path_factory.mktemp("headless"))


def result(command: str, *given: str | Path) -> dict[str, Any]:
    outcome = slimc(command, *given, "--json")
    assert outcome.code == 0, outcome.stderr
    found = parse(outcome.stdout)
    check(found, command)
    return found


def test_export_inspect_and_verify_tell_each(folder, tmp_path):
    model = tmp_path / "m.onnx"
    found = result("export", folder, "-o", model, *GIVEN, "--check-passes")
    assert [output["name"] for output in found["output_tensors"]] == NAMES
    assert [output["output"] for output in found["verify"]["outputs"]] == NAMES
    assert found["verify"]["max_abs_over_spread"] == max(o["max_abs_over_spread"] for o in found["verify"]["outputs"])
    assert found["verify"]["classes"] == 5
    assert result("inspect", model)["output_tensors"] == found["output_tensors"]
    assert result("inspect", folder, *GIVEN)["output_tensors"] == found["output_tensors"]
    for against in ((), ("--against", folder), ("--against", model)):
        (artefact,) = result("verify", model, *against)["artefacts"]
        assert [output["output"] for output in artefact["comparison"]["outputs"]] == NAMES


def test_people_are_told_the_worst_and_all(folder, headless, tmp_path):
    model = tmp_path / "m.onnx"
    told = slimc("export", folder, "-o", model, *GIVEN).stdout
    assert "of their spreads: logits " in told
    assert "top-1 agreement 100.0%" in told
    told = slimc("inspect", model).stdout
    assert "output features [1, 24]: what the head reads" in told
    assert "output blocks.0:nchw [1, 24, 2, 2]: the patches behind block 0" in told
    told = slimc("verify", model).stdout
    assert "logits, features, blocks.0:nchw" in told
    told = slimc("export", headless, "-o", model).stdout
    assert "of the spread of features" in told
    assert "top-1" not in told
    told = slimc("verify", model).stdout
    assert "top-1" not in told
    assert "PASSED" in told


def test_bench_times_what_is_asked_for(folder, headless):
    found = result("bench", folder, headless, "--outputs", "features", "--threads", "1", "--seconds", "0.05")
    assert [entry["variant"] for entry in found["networks"]] == ["dense", "masked", "slim"] * 2


def test_networks_without_a_classifier_are_asked_by_neighbours(folder, headless, tmp_path):
    data = write_digits(tmp_path / "digits", every=12)
    model = tmp_path / "m.onnx"
    assert slimc("export", headless, "-o", model, "-q").code == 0
    given = (headless, folder, model, "--data", data, "--knn", "1", "--data-train", data, "--threads", "1")
    found = result("eval", *given)
    assert [entry["right"] for entry in found["networks"]] == [30] * 7, "every image is its own nearest neighbour"
    refused = slimc("eval", headless, "--data", data)
    assert (refused.code, "has features, but no logits; give --knn K" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (
            ("export", "FOLDER", "--outputs", "scores"),
            "--outputs: 'scores' is unknown; expected logits, features, tokens",
        ),
        (("export", "FOLDER", "--outputs", "blocks.7"), "--outputs: this network has no blocks.7"),
        (("export", "FOLDER", "--outputs", ""), "--outputs: '' is unknown"),
        (("export", "SEARCHED", "--outputs", "features"), "--outputs: ViT-Slim networks give logits only"),
        (("bench", "SEARCHED", "--outputs", "tokens"), "--outputs: ViT-Slim networks give logits only"),
        (("bench", "MODEL", "--outputs", "logits"), "--outputs: says how to compile a checkpoint; "),
        (("inspect", "MODEL", "--outputs", "logits"), "is compiled already"),
        (("build-engine", "MODEL", "--outputs", "logits"), "--outputs: says how to compile a checkpoint; "),
    ],
)
def test_what_cannot_be_is_one_line(given, match, folder, tmp_path):
    model = tmp_path / "m.onnx"
    if "MODEL" in given:
        assert slimc("export", folder, "-o", model, "-q").code == 0
    names = {"FOLDER": folder, "SEARCHED": VECTORS["channel"], "MODEL": model}
    before = snapshot(tmp_path)
    output = ("-o", tmp_path / "new.onnx") if given[0] == "export" else ()
    assert_refused(*(names.get(word, word) for word in given), *output, match=match, directory=tmp_path)
    assert snapshot(tmp_path) == before
