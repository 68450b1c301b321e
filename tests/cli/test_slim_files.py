"""Every command that takes a checkpoint takes a slim file."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.artefacts import VECTORS
from tests.cli.test_imports import COMPILE_SIDE, python
from tests.command_line import assert_refused, slimc, snapshot
from tests.digits import IMAGES, write_digits
from tests.schemas import check, parse


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slim file of the network of digits."""
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    assert slimc("export", VECTORS["digits"], "-o", path, *IMAGES, "-q").code == 0
    return path


def result(command: str, *given: str | Path) -> dict[str, Any]:
    outcome = slimc(command, *given, "--json")
    assert outcome.code == 0, outcome.stderr
    found = parse(outcome.stdout)
    check(found, command)
    return found


def read(found: dict[str, Any]) -> list[str]:
    return [Path(file["path"]).name for file in found["inputs"]]


def test_export_writes_one_and_says_so(tmp_path):
    path = tmp_path / "small.safetensors"
    found = result("export", VECTORS["digits"], "-o", path, "--check-passes", *IMAGES)
    assert set(snapshot(tmp_path)) == {"small.safetensors"}
    assert (found["onnx"], found["reference"], found["variant"]) == (str(path), None, "slim")
    assert [file["path"] for file in found["outputs"]] == [str(path)]
    assert found["verify"]["max_abs_over_spread"] < 2e-5
    assert max(found["passes"].values()) < 1e-9
    assert found["params"]["slim"] < found["params"]["dense"]
    again = slimc("export", VECTORS["digits"], "-o", path, *IMAGES)
    assert again.code == 0
    assert f"wrote {path} (replaced small.safetensors)" in again.stdout.replace("\n", " ")


def test_export_reads_one(small, tmp_path):
    models = []
    for source, images in ((VECTORS["digits"], IMAGES), (small, ())):
        path = tmp_path / "m.onnx"
        found = result("export", source, "-o", path, "--target", "cpu", "--threads", "1", "--batch-size", "2", *images)
        assert found["verify"]["max_abs_over_spread"] < 2e-5
        models.append(path.read_bytes())
    assert models[0] == models[1]
    # What it states is the digest of the checkpoint; what is said of the input is its own.
    assert found["inputs"][0]["sha256"] == hashlib.sha256(small.read_bytes()).hexdigest()


def test_inspect_reads_one(small, tmp_path):
    found, expected = result("inspect", small), result("inspect", VECTORS["digits"], *IMAGES)
    header = ("slimc", "command", "host", "inputs", "outputs")
    assert {key: value for key, value in found.items() if key not in header} == {
        key: value for key, value in expected.items() if key not in header
    }
    assert read(found) == ["small.safetensors"]
    assert "ViT-Slim, slim" in slimc("inspect", small, "--plot", tmp_path / "p.png").stdout


def test_verify_compares_with_one(small, tmp_path):
    model = tmp_path / "m.onnx"
    assert slimc("export", VECTORS["digits"], "-o", model, "-q", *IMAGES).code == 0
    found = result("verify", model, "--against", small, "--data", write_digits(tmp_path / "digits", every=40))
    assert found["passed"]
    assert found["artefacts"][0]["comparison"]["inputs"] == 13
    assert read(found)[:2] == ["m.onnx", "small.safetensors"]


def test_bench_and_eval_show_the_slim_network_alone(small, tmp_path):
    found = result("bench", small, "--seconds", "0.05", "--threads", "1")
    assert [(network["name"].split(" [")[0], network["variant"]) for network in found["networks"]] == [
        ("small slim, batch 1", "slim")
    ]
    assert found["realised"] == []
    digits = write_digits(tmp_path / "digits", every=4)
    scores = result("eval", small, "--data", digits, "--threads", "1")["networks"]
    expected = result("eval", VECTORS["digits"], "--data", digits, "--threads", "1", *IMAGES)["networks"]
    assert [network["variant"] for network in scores] == ["slim"]
    assert (scores[0]["right"], scores[0]["loss"]) == (
        expected[2]["right"],
        pytest.approx(expected[2]["loss"], rel=1e-6),
    )


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="builds engines with TensorRT-RTX")
def test_build_engine_reads_one(small, tmp_path):
    engine = tmp_path / "small.engine"
    found = result("build-engine", small, "-o", engine, "--target", "sm89", "--fp16", "--backend", "tensorrt-rtx")
    assert engine.is_file()
    assert found["verify_graph"]["max_abs_over_spread"] < 1e-2


def test_usage_is_found_out_with_one(tmp_path):
    small, pictures = tmp_path / "small.safetensors", write_digits(tmp_path / "digits", every=60)
    assert slimc("export", VECTORS["gates"], "-o", small, "-q").code == 0
    found, expected = (result("inspect", source, "--data", pictures) for source in (small, VECTORS["gates"]))
    for key in ("macs", "blocks", "images"):
        assert found[key] == expected[key], key


def test_patches_that_one_keeps_are_drawn(tmp_path):
    small, image = tmp_path / "small.safetensors", next(write_digits(tmp_path / "digits", every=60).rglob("*.png"))
    flags = ("--num-heads", "4", "--pruning-loc", "3,6,9")
    assert slimc("export", VECTORS["deit"], "-o", small, "-q", *flags).code == 0
    pictures = ("--plot", tmp_path / "p.png", "--image", image)
    found, expected = result("inspect", small, *pictures), result("inspect", VECTORS["deit"], *flags, *pictures)
    kept = [[sorted(stage) for stage in each["kept_patches"]] for each in (found, expected)]
    assert kept[0] == kept[1]


def test_what_does_not_apply_is_one_line(small, tmp_path):
    out = tmp_path / "m.onnx"
    assert_refused("export", small, "-o", out, "--dense", match="holds the slim network alone", directory=tmp_path)
    assert_refused("export", small, "-o", out, "--masked", match="holds the slim network alone", directory=tmp_path)
    assert_refused("export", small, "-o", out, "--budget", "0.5", match="is slim already", directory=tmp_path)
    assert_refused("inspect", small, "--no-ema", match="--no-ema: ", directory=tmp_path)
    other = tmp_path / "other.safetensors"
    for option in (("--target", "sm89"), ("--batch-size", "2"), ("--fp16",), ("--opset", "17"), ("--dense",)):
        refused = ("export", VECTORS["channel"], "-o", other, *option)
        assert_refused(*refused, match="is a slim file, for any", directory=tmp_path)


def test_one_is_inspected_without_torch_and_run_with_it(small, tmp_path):
    script = """
from slimc.cli import main as cli
sys.argv = ["slimc", *sys.argv[1:]]
sys.exit(cli.run())
"""
    inspected = python(script, "inspect", small, "--json", hidden=COMPILE_SIDE)
    assert (inspected.returncode, inspected.stderr) == (0, "")
    assert parse(inspected.stdout)["system"] == "vit_slim"
    timed = python(script, "bench", small, "--seconds", "0.05", "--threads", "1", "-q", hidden=COMPILE_SIDE)
    assert (timed.returncode, timed.stderr) == (0, "")
    exported = python(script, "export", small, "-o", tmp_path / "m.onnx", hidden=COMPILE_SIDE)
    assert exported.returncode == 3
    assert len(exported.stderr.splitlines()) == 1
    assert "slimc[compile]" in exported.stderr
