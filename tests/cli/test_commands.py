"""The command line: what it writes and prints, exit codes, Ctrl-C at any time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slimc.compiler.pipeline import passes_for
from slimc.errors import InternalError
from slimc.targets.target import find_target
from tests.checkpoints import Recipe, arguments, save, small_checkpoint, state_dict
from tests.command_line import assert_refused, slimc, snapshot

COMMAND = [sys.executable, "-m", "slimc"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return small_checkpoint(tmp_path / "ckpt.pth")


class TestHelp:
    COMMANDS = ("export", "inspect", "build-engine", "verify", "eval", "bench", "tune", "doctor", "demo")

    def test_every_command_is_listed(self):
        outcome = slimc("--help")
        assert outcome.code == 0
        assert all(command in outcome.stdout for command in self.COMMANDS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_has_an_example_that_names_it(self, command):
        outcome = slimc(command, "--help")
        assert outcome.code == 0
        assert f"Example: slimc {command}" in outcome.stdout

    def test_the_version_is_printed(self):
        from slimc import __version__

        assert slimc("--version").stdout == f"slimc {__version__}\n"

    @pytest.mark.parametrize(
        "given",
        [["exprot"], ["export"], ["export", "a.pth", "--budgte", "0.5"], ["export", "a.pth", "--opset", "many"]],
    )
    def test_bad_usage_is_one_line(self, given, tmp_path):
        assert_refused(*given, match="(see --help)", directory=tmp_path)


class TestExport:
    def test_a_model_and_its_reference_are_written_and_told(self, checkpoint, tmp_path):
        outcome = slimc("export", checkpoint, "-o", tmp_path / "m.onnx")
        assert (outcome.code, outcome.stderr) == (0, "")
        assert set(snapshot(tmp_path)) == {"ckpt.pth", "m.onnx", "m.reference.npz"}
        assert "parameters" in outcome.stdout
        assert "verified on 4 inputs" in outcome.stdout
        assert f"wrote {tmp_path / 'm.onnx'}" in outcome.stdout.replace("\n", "")

    def test_json_is_one_object_with_the_promised_keys(self, checkpoint, tmp_path):
        outcome = slimc("export", checkpoint, "-o", tmp_path / "m.onnx", "--json")
        found = json.loads(outcome.stdout)
        assert outcome.stderr == ""
        assert {"onnx", "reference", "system", "settings", "params", "macs", "verify", "ms"} <= set(found)
        assert set(found["params"]) == set(found["macs"]) == {"dense", "slim"}
        assert {"max_abs", "max_abs_over_spread", "cosine", "top1_agreement", "tolerance", "passed"} <= set(
            found["verify"]
        )
        assert {"passes", "emit", "verify", "total"} <= set(found["ms"])
        assert found["system"] == "vit_slim"
        assert found["settings"]["budgets"] == {"attn": 0.7, "mlp": 0.7, "patch": 0.7}
        assert found["verify"]["passed"] is True
        assert found["params"]["slim"] < found["params"]["dense"]

    def test_quiet_prints_nothing(self, checkpoint, tmp_path):
        outcome = slimc("export", checkpoint, "-o", tmp_path / "m.onnx", "--quiet")
        assert (outcome.code, outcome.stdout, outcome.stderr) == (0, "", "")

    def test_the_default_output_is_beside_the_user_and_not_the_checkpoint(self, checkpoint, tmp_path, monkeypatch):
        here = tmp_path / "here"
        here.mkdir()
        monkeypatch.chdir(here)
        named = checkpoint.rename(checkpoint.with_name("best.pth.tar"))
        assert slimc("export", named, "--quiet").code == 0
        assert set(snapshot(here)) == {"best.onnx", "best.reference.npz"}

    @pytest.mark.parametrize(
        "options",
        [
            ["--dense"],
            ["--masked"],
            ["--batch-size", "3"],
            ["--opset", "20"],
            ["--target", "sm86"],
            ["--budget", "0.5"],
            ["--budget", "0.5", "--budget-mlp", "1"],
            ["--check-passes"],
            ["--qk-scale", "0.3"],
            ["--num-heads", "3"],
            ["--img-size", "6", "6"],
        ],
    )
    def test_options_reach_the_model(self, checkpoint, tmp_path, options):
        outcome = slimc("export", checkpoint, "-o", tmp_path / "m.onnx", "--json", *options)
        assert outcome.code == 0, outcome.stderr
        assert json.loads(outcome.stdout)["verify"]["passed"] is True

    def test_without_verification_nothing_is_compared(self, checkpoint, tmp_path):
        outcome = slimc("export", checkpoint, "-o", tmp_path / "m.onnx", "--json", "--no-verify")
        assert json.loads(outcome.stdout)["verify"] is None
        assert (tmp_path / "m.reference.npz").exists()

    def test_checking_every_pass_reports_it_by_name(self, checkpoint, tmp_path):
        outcome = slimc("export", checkpoint, "-o", tmp_path / "m.onnx", "--json", "--check-passes")
        found = json.loads(outcome.stdout)["passes"]
        assert set(found) == {type(step).__name__ for step in passes_for(find_target("generic"))}
        assert max(found.values()) <= 1e-9

    def test_images_of_a_folder_are_compared_too(self, checkpoint, tmp_path):
        from PIL import Image

        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 255, (9, 14, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        outcome = slimc("export", checkpoint, "-o", tmp_path / "m.onnx", "--json", "--data", tmp_path)
        assert json.loads(outcome.stdout)["verify"]["inputs"] == 4 + 3
        with np.load(tmp_path / "m.reference.npz") as reference:
            assert len(reference["images"]) == 4

    def test_the_same_input_gives_the_same_files(self, checkpoint, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            assert slimc("export", checkpoint, "-o", tmp_path / name / "m.onnx", "--quiet").code == 0
        assert (tmp_path / "a/m.onnx").read_bytes() == (tmp_path / "b/m.onnx").read_bytes()
        first, second = (np.load(tmp_path / name / "m.reference.npz") for name in ("a", "b"))
        with first, second:
            assert all(np.array_equal(first[key], second[key]) for key in ("images", "logits", "facts"))

    def test_searched_networks_of_which_nothing_is_left_still_compile(self, tmp_path):
        """No patch has a reader when no attention is left: the logits are constant."""
        state = state_dict()
        for layer in range(2):
            state[f"blocks.{layer}.attn.zeta"] = torch.zeros(1, 1, 3, 1, 4)
        state["blocks.1.attn.zeta"][0, 0, 2, 0, 3] = 1.0
        state["blocks.1.attn.patch_zeta"] = torch.full((1, 10, 1), -1.0)
        state["blocks.0.attn.patch_zeta"] = torch.full((1, 10, 1), -1.0)
        state["blocks.0.attn.patch_zeta"][0, 0] = 3.0
        path = save(tmp_path / "c.pth", {"model": state, "args": arguments(attn=0.01, mlp=0.5, patch=0.01)})
        outcome = slimc("export", path, "-o", tmp_path / "m.onnx", "--json")
        assert outcome.code == 0, outcome.stderr
        assert json.loads(outcome.stdout)["verify"]["passed"] is True


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("verify")
    path = directory / "m.onnx"
    assert slimc("export", small_checkpoint(directory / "ckpt.pth"), "-o", path, "--quiet").code == 0
    return path


def test_a_model_passes_against_its_reference_and_its_checkpoint(model):
    assert slimc("verify", model).code == 0
    assert slimc("verify", model, "--against", model.with_name("ckpt.pth")).code == 0


def test_a_model_with_one_changed_weight_fails_with_exit_code_1(model, tmp_path):
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(model)
    tensor = next(t for t in proto.graph.initializer if t.name == "head.bias")
    values = numpy_helper.to_array(tensor).copy()
    values[0] += 0.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, tmp_path / "m.onnx")
    (tmp_path / "m.reference.npz").write_bytes(model.with_name("m.reference.npz").read_bytes())
    outcome = slimc("verify", tmp_path / "m.onnx", "--json")
    assert outcome.code == 1
    assert json.loads(outcome.stdout)["passed"] is False


def test_the_reference_of_another_checkpoint_is_refused(model, tmp_path):
    other = small_checkpoint(tmp_path / "other.pth", Recipe(seed=5))
    assert_refused("verify", model, "--against", other, match="of another checkpoint than", directory=tmp_path)


def test_a_model_that_does_not_match_is_not_written_and_exits_with_1(tmp_path, checkpoint, monkeypatch):
    """The tolerance of a run is made impossible to meet; everything else is real."""
    from slimc.emit import precision

    monkeypatch.setitem(precision.TOLERANCE, "fp32", 0.0)
    given = ["export", checkpoint, "-o", tmp_path / "m.onnx"]
    assert_refused(*given, code=1, match="not written: the ONNX model differs", directory=tmp_path)


def test_a_defect_of_ours_keeps_its_traceback_and_exits_with_70(tmp_path, checkpoint, monkeypatch):
    from slimc.compiler import export

    def fail(*_: Any, **__: Any) -> None:
        raise InternalError("a defect")

    monkeypatch.setattr(export, "emit_onnx", fail)
    outcome = slimc("export", checkpoint, "-o", tmp_path / "m.onnx")
    assert outcome.code == 70
    assert "Traceback" in outcome.stderr
    assert set(snapshot(tmp_path)) == {"ckpt.pth"}


def test_the_installed_way_in_has_the_exit_codes_too(tmp_path, checkpoint):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, *arguments]
        return subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, check=False)

    refused = run("export", "no.pth")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: no.pth: no such file")
    done = run("export", "ckpt.pth", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["onnx"] == "ckpt.onnx"


def test_interrupts_at_any_moment_of_the_work_leave_the_old_files_or_the_new(tmp_path, checkpoint):
    out = tmp_path / "out"
    out.mkdir()
    rounds = subprocess.run(
        [sys.executable, "-m", "tests.cli.interrupts", checkpoint, out, "40"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(rounds) == 40
    assert set(rounds) <= {"130 old", "0 new", "130 new"}
    assert rounds.count("130 old") >= 10


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_an_interrupted_process_leaves_the_old_files_or_the_new(tmp_path, checkpoint, share):
    for name in ("m.onnx", "m.reference.npz"):
        (tmp_path / name).write_bytes(b"old")
    before = snapshot(tmp_path)
    command = [*COMMAND, "export", checkpoint, "-o", tmp_path / "m.onnx", "--quiet"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE)
    time.sleep(3 * share)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    found = snapshot(tmp_path)
    assert found.keys() == before.keys()
    # New files and yet interrupted: the signal came while the process was ending.
    assert found == before or b"old" not in found.values()
