"""A system is one class and one line: everything else follows from them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import slimc
from slimc.models import systems
from tests.artefacts import VECTORS
from tests.checkpoints import Recipe, save, state_dict
from tests.models import toy
from tests.schemas import check
from tests.terminal import ROOT, environment


def run(*given: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line that knows toys."""
    command = [sys.executable, "-m", "tests.models.toy", *map(str, given)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


def result(command: str, *given: str | Path) -> dict[str, Any]:
    done = run(command, *given, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    check(found, command)
    return found


def toy_checkpoint(path: Path) -> Path:
    """A search-stage checkpoint of a toy: it has no budgets."""
    return save(
        path,
        {"model": {key.replace("zeta", "toy_zeta"): weight for key, weight in state_dict(Recipe()).items()}},
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_checkpoint(tmp_path_factory.mktemp("toy") / "toy.pth")


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> dict[str, Any]:
    return result("export", checkpoint, "--toy-share", "0.6", "-o", checkpoint.with_name("toy.onnx"))


def test_its_checkpoints_are_recognised_and_compiled(exported):
    assert exported["system"] == "toy"
    assert exported["settings"]["budgets"] == {"attn": 0.6, "mlp": 0.6, "patch": 0.6}
    assert exported["verify"]["passed"] is True
    assert exported["params"]["slim"] < exported["params"]["dense"]


def test_its_option_has_a_panel_of_its_title():
    text = run("export", "--help").stdout
    panel = re.search(r"^Toy:\n((?:  .*\n)+)", text, re.MULTILINE)
    assert panel
    assert panel[1].split() == ["--toy-share", "SHARE", "Share", "of", "a", "toy", "to", "keep."]
    titles = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert titles == [
        "Arguments",
        "Options",
        "Checkpoint",
        "Plain ViT",
        "ViT-Slim",
        "DynamicViT",
        "AdaViT",
        "Toy",
        "Target",
        "Output",
    ]


def test_inspect_takes_its_checkpoints_and_models(checkpoint, exported):
    of_checkpoint = result("inspect", checkpoint, "--toy-share", "0.6")
    of_model = result("inspect", exported["onnx"])
    assert of_checkpoint["system"] == of_model["system"] == "toy"
    assert of_checkpoint["layers"] == of_model["layers"]
    assert run("inspect", exported["onnx"]).stdout.startswith("Toy, slim\n")


def test_verify_and_bench_take_its_checkpoints(checkpoint, exported):
    verified = result("verify", exported["onnx"], "--against", checkpoint, "--toy-share", "0.6")
    assert verified["passed"] is True
    timed = result("bench", checkpoint, "--toy-share", "0.6", "--seconds", "0.05", "--threads", "1")
    assert [network["variant"] for network in timed["networks"]] == ["dense", "masked", "slim"]


@pytest.mark.parametrize(
    ("vector", "given", "title"),
    [("channel", (), "ViT-Slim"), ("deit", ("--num-heads", "4"), "DynamicViT"), ("gates", (), "AdaViT")],
)
def test_its_option_is_refused_on_checkpoints_of_others_by_name(vector, given, title, tmp_path):
    done = run("export", VECTORS[vector], *given, "--toy-share", "0.6", "-o", tmp_path / "m.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: --toy-share: {title} checkpoints have no such setting; theirs are --")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_options_of_others_are_refused_on_its_checkpoints(checkpoint, tmp_path):
    done = run("export", checkpoint, "--budget", "0.6", "-o", tmp_path / "m.onnx")
    assert done.returncode == 2
    assert "--budget: Toy checkpoints have no such setting; theirs are " in done.stderr
    assert "--toy-share" in done.stderr
    assert "--toy-share: 2 is not a share" in run("export", checkpoint, "--toy-share", "2").stderr


def test_python_knows_it_too(checkpoint, monkeypatch):
    with pytest.raises(slimc.OptionError, match="--toy-share: Plain ViT checkpoints have no such setting"):
        slimc.load(checkpoint, toy_share=0.6)
    monkeypatch.setattr(systems, "SYSTEMS", toy.SYSTEMS)
    network = slimc.load(checkpoint, toy_share=0.6)
    assert (network.system.name, network.settings["budgets"]["mlp"]) == ("toy", 0.6)
    with pytest.raises(slimc.OptionError, match="--budget: Toy checkpoints have no such setting"):
        slimc.load(checkpoint, budget=0.6)
    with pytest.raises(slimc.CheckpointError, match=re.escape("Toy (blocks.i.attn.toy_zeta)")):
        slimc.load(save(checkpoint.with_name("other.pth"), {"model": {"a": state_dict()["norm.bias"]}}))
