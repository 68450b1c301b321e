"""``--json`` is a contract: every command's result is one object that its schema in docs/schemas describes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from typer.main import get_command

from slimc.cli.console import Output
from slimc.cli.main import app
from slimc.compiler import export
from slimc.emit.file import write_model
from slimc.errors import InternalError
from tests.artefacts import VECTORS, exported
from tests.command_line import slimc, snapshot
from tests.digits import IMAGES as DIGITS
from tests.digits import write_digits
from tests.schemas import SUFFIX, check, objects, parse, schemas

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference" / "json.md"
# A checkpoint of each system, and what it does not say itself.
CHECKPOINTS: dict[str, tuple[Path, tuple[str, ...]]] = {
    "vit_slim": (VECTORS["channel"], ()),
    "dynamic_vit": (VECTORS["deit"], ("--num-heads", "4", "--pruning-loc", "3,6,9")),
    "ada_vit": (VECTORS["tokens"], ()),
}
COMMANDS = sorted(
    name
    for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
    if any("--json" in parameter.opts for parameter in command.params)
)


def result(command: str, *given: str | Path, code: int = 0) -> dict[str, Any]:
    """What ``slimc COMMAND GIVEN... --json`` prints, which is JSON and nothing else."""
    outcome = slimc(command, *given, "--json")
    assert outcome.code == code, outcome.stderr
    assert "error" not in outcome.stderr
    found = parse(outcome.stdout)
    check(found, command)
    return found


def written(found: dict[str, Any]) -> set[str]:
    return {Path(file["path"]).name for file in found["outputs"]}


def read(found: dict[str, Any]) -> list[str]:
    return [file["path"] for file in found["inputs"]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, which are as large as the networks' inputs."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (56, 56, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_eval_says_what_changed_between_networks(tmp_path):
    data = write_digits(tmp_path / "digits", every=20)
    found = result("eval", VECTORS["digits"], "--data", data, *DIGITS, "--threads", "1")
    assert [network["variant"] for network in found["networks"]] == ["dense", "masked", "slim"]
    assert [change["changed"] for change in found["changes"]][-1] == 0
    assert found["networks"][0]["preprocessing"]["input_size"] == [3, 56, 56]
    assert (read(found), written(found)) == ([str(VECTORS["digits"])], set())
    exported = result("export", VECTORS["digits"], "-o", tmp_path / "m.onnx", "--data", data, *DIGITS)
    assert exported["accuracy"]["onnx"] == pytest.approx(
        {key: found["networks"][2][key] for key in ("right", "top1", "top5", "loss")}, rel=1e-4
    )


class TestSchemas:
    def test_every_command_that_prints_json_has_a_schema_and_nothing_else_has_one(self):
        assert len(COMMANDS) == 9
        assert set(schemas()) == {f"{name}{SUFFIX}" for name in (*COMMANDS, "header", "shared")}

    @pytest.mark.parametrize("name", sorted(schemas()))
    def test_a_schema_is_one_and_describes_every_key(self, name):
        schema = schemas()[name]
        Draft202012Validator.check_schema(schema)
        assert schema["$id"] == name
        header = schemas()[f"header{SUFFIX}"]["$defs"]
        for found in objects(schema):
            assert found.get("additionalProperties") is False or name == f"header{SUFFIX}"
            for key, value in found["properties"].items():
                described = value if "description" in value else header.get(key, {})
                assert described.get("description") or "shared" in value.get("$ref", ""), key

    @pytest.mark.parametrize("command", COMMANDS)
    def test_an_unknown_key_and_a_missing_header_are_found(self, command):
        from tests.schemas import validator

        errors = [error.message for error in validator(command).iter_errors({"slimc": "1", "nonsense": 1})]
        assert errors

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_key_stands_in_the_reference(self, command):
        sections = dict(re.findall(r"^## `slimc ([\w-]+)`\n(.*?)(?=^## |\Z)", REFERENCE.read_text(), re.S | re.M))
        header = schemas()[f"header{SUFFIX}"]["$defs"].keys()
        keys = {key for found in objects(schemas()[command + SUFFIX]) for key in found["properties"]} - header
        assert sorted(key for key in keys if f"`{key}`" not in sections[command]) == []

    def test_every_shared_key_stands_in_the_reference(self):
        text = REFERENCE.read_text()
        keys = {
            key
            for name in ("header", "shared")
            for found in objects(schemas()[name + SUFFIX])
            for key in found["properties"]
        }
        assert sorted(key for key in keys if f"`{key}`" not in text) == []

    def test_the_examples_in_the_reference_are_parts_of_results(self):
        for text in re.findall(r"^```json\n(.*?)^```", REFERENCE.read_text(), re.S | re.M):
            command = re.search(r'"command": "([\w-]+)"', text)
            assert command
            known = {
                key
                for name in (command[1], "header", "shared")
                for found in objects(schemas()[name + SUFFIX])
                for key in found["properties"]
            }
            known |= set(schemas()[f"header{SUFFIX}"]["$defs"]["host"]["properties"])
            assert set(re.findall(r'^  "(\w+)":', text, re.M)) <= known

    def test_no_result_can_take_the_place_of_a_key_of_the_header(self):
        with pytest.raises(InternalError, match="inputs, outputs would stand in the place of the header's"):
            Output(json=True).result("export", {"inputs": [], "outputs": [], "system": "vit_slim"})


class TestExport:
    @pytest.mark.parametrize("system", CHECKPOINTS)
    @pytest.mark.parametrize("more", [(), ("--dense",), ("--fp16",)], ids=["slim", "dense", "fp16"])
    def test_every_system(self, system, more, tmp_path):
        checkpoint, flags = CHECKPOINTS[system]
        found = result("export", checkpoint, *flags, "-o", tmp_path / "m.onnx", *more)
        assert found["system"] == system
        assert (found["variant"], found["precision"]) == (
            "dense" if more == ("--dense",) else "slim",
            "fp16" if more == ("--fp16",) else "fp32",
        )
        assert read(found) == [str(checkpoint)]
        assert written(found) == set(snapshot(tmp_path)) == {"m.onnx", "m.reference.npz"}
        stages = {name: spent for name, spent in found["ms"].items() if name != "total"}
        assert set(stages) == {"load", "passes", "emit", "verify"}
        assert min(stages.values()) > 0
        assert sum(stages.values()) <= found["ms"]["total"]

    def test_limits_of_capacities_and_images(self, images, tmp_path):
        given = ("--adaptive", "capacity", "--capacity-quantile", "0.8", "--data", images)
        found = result("export", VECTORS["tokens"], *given, "-o", tmp_path / "m.onnx")
        assert found["adaptive"] == "capacity"
        assert found["data"] == str(images)
        assert len(found["limits"]["settled"]) == len(found["limits"]["capacities"]) == 6
        assert found["verify"]["choices"]["kind"] == "decisions"
        assert found["verify"]["choices"]["images"] == 4 + 5
        assert found["ms"]["calibrate"] > 0
        if found["worst_file"] is not None:
            assert Path(found["worst_file"]).parent == images
        again = result("inspect", tmp_path / "m.onnx")
        assert again["limits"] == found["limits"]

    def test_what_is_asked_for_besides(self, tmp_path, short_tuning):
        tuning = tmp_path / "tuning.json"
        made = result("tune", "-o", tuning)
        given = ("--target", "cpu", "--tuning", tuning, "--check-passes", "--no-verify")
        found = result("export", VECTORS["channel"], *given, "-o", tmp_path / "m.onnx")
        assert found["verify"] is None
        assert max(found["passes"].values()) <= 1e-9
        assert found["tuned"].startswith(made["library"])
        assert read(found) == [str(VECTORS["channel"]), str(tuning)]
        again = result("export", VECTORS["channel"], *given, "-o", tmp_path / "m.onnx")
        assert again["replaced"] == [str(tmp_path / "m.onnx"), str(tmp_path / "m.reference.npz")]
        assert again["outputs"] == found["outputs"]

    def test_weights_beside_the_model_are_outputs_too(self, tmp_path, monkeypatch):
        monkeypatch.setattr(export, "write_model", partial(write_model, inline_limit=1000))
        found = result("export", VECTORS["channel"], "-o", tmp_path / "m.onnx")
        assert written(found) == set(snapshot(tmp_path))
        assert len(found["outputs"]) == 3


class TestInspect:
    @pytest.mark.parametrize("system", CHECKPOINTS)
    def test_checkpoints_and_their_models(self, system, tmp_path):
        checkpoint, flags = CHECKPOINTS[system]
        of_checkpoint = result("inspect", checkpoint, *flags)
        assert slimc("export", checkpoint, *flags, "-o", tmp_path / "m.onnx", "-q").code == 0
        of_model = result("inspect", tmp_path / "m.onnx")
        assert of_model.keys() == of_checkpoint.keys()
        same = ("system", "variant", "settings", "details", "params", "macs", "layers", "image", "grid", "adaptive")
        assert {key: of_model[key] for key in same} == {key: of_checkpoint[key] for key in same}

    def test_usage_on_images(self, images, tmp_path):
        found = result("inspect", VECTORS["tokens"], "--data", images, "--plot", tmp_path / "usage.svg")
        assert found["images"] == 5
        assert written(found) == {"usage.svg"}
        assert found["macs"]["quantiles"]["0%"] <= found["macs"]["mean"] <= found["macs"]["quantiles"]["100%"]

    def test_what_is_kept_of_an_image(self, images, tmp_path):
        checkpoint, flags = CHECKPOINTS["dynamic_vit"]
        picture, image = tmp_path / "kept.png", images / "0.png"
        found = result("inspect", checkpoint, *flags, "--plot", picture, "--image", image)
        assert [len(stage) for stage in found["kept_patches"]] == [137, 96, 67]
        assert read(found) == [str(checkpoint), str(image)]
        assert (written(found), found["replaced"]) == ({"kept.png"}, [])
        assert result("inspect", checkpoint, *flags, "--plot", picture)["replaced"] == [str(picture)]


class TestVerify:
    @pytest.mark.parametrize(("vector", "kind"), [("channel", None), ("deit", "kept_patches"), ("tokens", "decisions")])
    def test_every_system_against_its_reference(self, vector, kind, tmp_path):
        model = exported(vector, tmp_path)
        found = result("verify", model, model)
        assert found["passed"] is True
        assert read(found) == [str(model), str(model.with_suffix(".reference.npz"))]
        for artefact in found["artefacts"]:
            assert artefact["against"] == str(model.with_suffix(".reference.npz"))
            choices = artefact["comparison"]["choices"]
            assert (choices and choices["kind"]) == kind

    def test_against_a_checkpoint_on_images(self, images, tmp_path):
        model = exported("channel", tmp_path)
        found = result("verify", model, "--against", VECTORS["channel"], "--data", images)
        assert found["data"] == str(images)
        assert read(found) == [str(model), str(VECTORS["channel"])]
        assert found["artefacts"][0]["comparison"]["inputs"] == 4 + 5

    def test_a_failure_is_a_result_too(self, tmp_path):
        model = exported("channel", tmp_path)
        found = result("verify", model, "--tolerance", "1e-12", code=1)
        assert found["passed"] is found["artefacts"][0]["passed"] is False
        assert found["artefacts"][0]["comparison"]["passed"] is False


class TestBench:
    def test_a_checkpoint_and_a_model(self, tmp_path):
        model = exported("channel", tmp_path)
        given = ("--threads", "1", "--seconds", "0.05", "--csv", tmp_path / "t.csv", "--plot", tmp_path / "t.svg")
        found = result("bench", VECTORS["channel"], model, *given)
        assert [network["variant"] for network in found["networks"]] == ["dense", "masked", "slim", "slim"]
        assert found["networks"][0]["ratio_to_first"] == 1.0
        assert [share["family"] for share in found["realised"]] == [found["networks"][0]["family"]]
        assert read(found) == [str(VECTORS["channel"]), str(model)]
        assert written(found) == {"t.csv", "t.svg"}
        header = (tmp_path / "t.csv").read_text().splitlines()[0].split(",")
        assert header == list(found["networks"][0])
        times = [network[key] for network in found["networks"] for key in ("median_ms", "mean_ms", "min_ms")]
        assert all(0.01 < time < 1000 for time in times)

    def test_a_model_of_somebody_else(self, tmp_path):
        import onnx

        model = exported("channel", tmp_path)
        content = onnx.load(model)
        del content.metadata_props[:]
        onnx.save(content, tmp_path / "foreign.onnx")
        (network,) = result("bench", tmp_path / "foreign.onnx", "--seconds", "0.05")["networks"]
        assert (network["variant"], network["macs"], network["threads"], network["family"]) == (None,) * 4


def test_build_engine_says_what_was_read_and_written_and_what_the_engine_takes(tmp_path):
    """In a process of its own: the library prints past Python's streams."""
    pytest.importorskip("tensorrt_rtx")
    model = exported("channel", tmp_path)
    (tmp_path / "out").mkdir()
    engine = tmp_path / "out" / "small.engine"
    command = [
        sys.executable,
        "-m",
        "slimc",
        "build-engine",
        model,
        "--backend",
        "tensorrt-rtx",
        "--fp16",
        "-o",
        engine,
        "--json",
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = parse(run.stdout)
    check(found, "build-engine")
    assert read(found) == [str(model), str(model.with_suffix(".reference.npz"))]
    assert (
        written(found) == set(snapshot(engine.parent)) == {"small.engine", "small.engine.json", "small.reference.npz"}
    )
    assert [spec["shape"] for spec in found["input_tensors"]] == [[1, 3, 56, 56]]
    assert found["onnx_sha256"] == found["inputs"][0]["sha256"]
    assert found["plan_sha256"] == found["outputs"][0]["sha256"]
    assert found["verify_graph"]["passed"] is True
    assert found["unchecked"] or found["verify"]["passed"]


def test_tune(short_tuning, tmp_path):
    found = result("tune", "--threads", "2", "-o", tmp_path / "tuning.json")
    assert written(found) == {"tuning.json"}
    stored = json.loads((tmp_path / "tuning.json").read_text())
    assert (found["costs"], found["fit_error"]) == (stored["costs"], stored["error"])


def test_doctor():
    found = result("doctor")
    assert all((finding["install"] is None) == finding["works"] for finding in found["findings"])


def test_demo(tmp_path):
    kept = result("demo", "--output", tmp_path / "demo")
    assert written(kept) == set(snapshot(tmp_path / "demo"))
    assert len(kept["outputs"]) == 7
    assert kept["macs"]["slim"] < kept["macs"]["dense"]
    assert result("demo")["outputs"] == []
