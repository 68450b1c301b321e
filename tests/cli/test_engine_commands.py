"""build-engine, verify, bench and doctor as they are called: words, JSON and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slimc.backends.cuda import gpu_missing
from tests.artefacts import VECTORS, exported

ROOT = Path(__file__).parents[2]
# What a target machine looks like: nothing that only compiling a checkpoint needs.
DEPLOY_SIDE = """
import sys
hidden = {"torch", "timm", "safetensors", "torchvision"}
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ImportError(f"{name} is hidden")
sys.meta_path.insert(0, Hide())
from slimc.cli.main import run
code = run()
assert not hidden & set(sys.modules), hidden & set(sys.modules)
sys.exit(code)
"""


def slimc(*arguments: object, deploy: bool = False, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command line, with torch and timm hidden on the deploy side."""
    how = ["-c", DEPLOY_SIDE] if deploy else ["-m", "slimc"]
    command = [sys.executable, *how, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return exported("channel", tmp_path_factory.mktemp("model"))


def test_the_deploy_side_needs_neither_torch_nor_timm(model, tmp_path):
    engine = tmp_path / "small.engine"
    verified = slimc("verify", model, "--threads", 1, deploy=True)
    assert (verified.returncode, verified.stderr) == (0, "")
    timed = slimc("bench", model, "--seconds", 0.01, "--threads", 1, "--quiet", deploy=True)
    assert (timed.returncode, timed.stderr) == (0, "")
    found = slimc("doctor", deploy=True)
    assert (found.returncode, found.stderr) == (0, "")
    pytest.importorskip("tensorrt_rtx")
    built = slimc(
        "build-engine", model, "--fp16", "--backend", "tensorrt-rtx", "--no-verify", "-o", engine, deploy=True
    )
    assert (built.returncode, built.stderr) == (0, "")
    assert engine.stat().st_size > 0


def test_verify_ends_with_its_verdict_and_an_exit_code(model):
    passed = slimc("verify", model, "--threads", 1)
    assert passed.returncode == 0
    assert passed.stdout.splitlines()[-1] == "PASSED"
    failed = slimc("verify", model, "--threads", 1, "--tolerance", 1e-12)
    assert failed.returncode == 1
    assert failed.stdout.splitlines()[-1] == "FAILED"
    assert failed.stderr == ""


def test_verify_prints_one_json_object(model):
    run = slimc("verify", model, "--threads", 1, "--json")
    result = json.loads(run.stdout)
    assert result["passed"] is True
    assert result["artefacts"][0]["comparison"]["inputs"] == 4
    assert result["artefacts"][0]["comparison"]["max_abs_over_spread"] < 1e-4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("verify", "none.onnx"), 2, "none.onnx: no such file"),
        (("verify", "none.engine"), 2, "none.engine: no such engine"),
        (("verify", "model.txt"), 2, "ends in .onnx or .engine"),
        (("build-engine", "none.onnx"), 2, "none.onnx: no such file"),
        (("build-engine", "none.onnx", "--fp16", "--bf16"), 2, "--bf16: contradicts --fp16"),
        (("build-engine", "none.onnx", "-o", "out.plan"), 2, "out.plan ends in .plan; expected .engine"),
        (("bench", "none.onnx"), 2, "none.onnx: no such ONNX model"),
        (("bench", "none.onnx", "--plot", "out.txt"), 2, "--plot"),
        (("bench", "none.onnx", "--csv", "no/such/place.csv"), 2, "does not exist"),
    ],
)
def test_mistakes_are_one_line(arguments, code, words):
    run = slimc(*arguments)
    assert run.returncode == code
    assert run.stdout == ""
    assert words in run.stderr
    assert run.stderr.count("\n") == 1


def test_what_is_missing_has_an_exit_code_of_its_own(model):
    if gpu_missing() is None:
        pytest.skip("this machine has a GPU")
    pytest.importorskip("tensorrt_rtx")
    run = slimc("build-engine", model, "--backend", "tensorrt", "-o", model.with_name("m.engine"))
    assert run.returncode == 3
    assert "pip install" in run.stderr
    assert run.stderr.count("\n") == 1


def test_build_engine_tells_what_became_of_the_blocks(model, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    engine = tmp_path / "small.engine"
    arguments = ("build-engine", model, "--backend", "tensorrt-rtx", "--target", "SM89", "--target", "sm120")
    run = slimc(*arguments, "--fp16", "--no-fused-attention", "-o", engine)
    assert run.returncode == 0
    assert "attention fused in 0 of 4" in run.stdout
    assert "switched off by --no-fused-attention" in run.stderr
    run = slimc(*arguments, "--fp16", "-o", engine, "--json")
    result = json.loads(run.stdout)
    assert result["targets"] == ["sm89", "sm120"]
    assert [block["fused"] for block in result["blocks"]] == [1] * 4
    assert result["verify_graph"]["passed"] is True


def test_bench_writes_its_figures_everywhere(tmp_path):
    table, picture = tmp_path / "latency.csv", tmp_path / "latency.png"
    run = slimc(
        "bench", VECTORS["channel"], "--seconds", 0.01, "--threads", 1, "--json", "--csv", table, "--plot", picture
    )
    result = json.loads(run.stdout)
    assert [network["variant"] for network in result["networks"]] == ["dense", "masked", "slim"]
    assert result["realised"][0]["macs_ratio"] < 1
    assert len(table.read_text().splitlines()) == 4
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_doctor_knows_this_machine():
    result = json.loads(slimc("doctor", "--json").stdout)
    found = {item["name"]: item for item in result["findings"]}
    assert found["torch"]["works"]
    assert result["able"]["compile"] is True
    assert all(item["works"] or item["install"] for item in found.values())
    if gpu_missing() is not None:
        assert result["able"]["run_engine"] is False
