"""The command line takes folders as it takes files, and timm's arguments as timm's scripts do."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import slimc as library
from slimc.cli.main import _repeated
from slimc.files.output import default_output
from tests.command_line import assert_refused, slimc, snapshot
from tests.models.test_folders import network, saved
from tests.schemas import check, parse

IMAGES = ("--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of timm's in a folder whose name has a dot in it."""
    made = tmp_path_factory.mktemp("hub") / "vit.tiny"
    made.mkdir()
    return saved(network("vit_tiny_patch16_224"), made)


@pytest.fixture(scope="module")
def module() -> Any:
    return network("vit_tiny_patch16_224")


def result(command: str, *given: str | Path) -> dict[str, Any]:
    outcome = slimc(command, *given, "--json")
    assert outcome.code == 0, outcome.stderr
    found = parse(outcome.stdout)
    check(found, command)
    return found


def read(found: dict[str, Any]) -> list[str]:
    return [Path(file["path"]).name for file in found["inputs"]]


def test_a_folder_is_exported_under_its_whole_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = result("export", folder)
    assert set(snapshot(tmp_path)) == {"vit.tiny.onnx", "vit.tiny.reference.npz"}
    assert read(found) == ["config.json", "model.safetensors"]
    monkeypatch.chdir(folder)
    assert default_output(Path(), ".onnx") == Path("vit.tiny.onnx")


def test_other_commands_take_folders_too(folder, tmp_path):
    model = tmp_path / "m.onnx"
    assert slimc("export", folder, "-o", model, "-q").code == 0
    assert read(result("verify", model, "--against", folder)) == ["m.onnx", "config.json", "model.safetensors"]
    assert read(result("inspect", folder)) == ["config.json", "model.safetensors"]
    found = result("bench", folder, "--threads", "1", "--seconds", "0.05")
    assert [entry["name"].split(",")[0] for entry in found["networks"]] == [
        f"vit.tiny {variant}" for variant in ("dense", "masked", "slim")
    ]


def test_the_output_may_not_be_the_folder(folder):
    assert_refused("export", folder, "-o", folder, match="is the checkpoint itself", directory=folder)


def test_shards_are_inputs_with_what_names_them(tmp_path):
    from slimc.files.digest import files_of

    (tmp_path / "config.json").write_text("{}")
    names = {"a": "model-00002.safetensors", "b": "model-00001.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert [path.name for path in files_of(tmp_path)] == [
        "config.json", "model.safetensors.index.json", "model-00001.safetensors", "model-00002.safetensors",
    ]  # fmt: skip
    (tmp_path / "model.safetensors.index.json").write_text("no JSON")
    assert [path.name for path in files_of(tmp_path)] == ["config.json"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("export a --model-kwargs b=1 c=2 -q", "export a --model-kwargs b=1 --model-kwargs c=2 -q"),
        ("export --model-kwargs=b=1 c=2 a", "export --model-kwargs=b=1 --model-kwargs c=2 a"),
        ("export --model-kwargs b=1 a c=2", "export --model-kwargs b=1 a c=2"),
        ("export --model-kwargs b=1 --model-kwargs c=2", "export --model-kwargs b=1 --model-kwargs c=2"),
        ("export --model-kwargs b=1 ./c=2.pth", "export --model-kwargs b=1 ./c=2.pth"),
        ("export --model-kwargs b=1 -- c=2", "export --model-kwargs b=1 -- c=2"),
        ("export a b=1 --arch c", "export a b=1 --arch c"),
        ("export a --model-kwargs", "export a --model-kwargs"),
    ],
)
def test_one_option_takes_several_arguments(given, expected):
    assert _repeated(given.split()) == expected.split()


def test_arguments_reach_timm(tmp_path):
    arguments = {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": 32, "num_classes": 5}
    torch.save(timm.create_model("vit_tiny_patch16_224", **arguments).state_dict(), tmp_path / "w.pth")
    model = tmp_path / "m.onnx"
    named = [f"{key}={value}" for key, value in arguments.items() if key != "num_classes"]
    given = ("--arch", "vit_tiny_patch16_224", "--model-kwargs", *named)
    found = result("export", tmp_path / "w.pth", *given, *IMAGES, "-o", model)
    assert len(library.read_metadata(model).structure.layers) == 2
    assert found["inputs"][0]["sha256"] == hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()


class TestModules:
    """A module has no file: its path is a name that there need not be."""

    def test_one_is_exported(self, module, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        report = library.export(module, "m.onnx", mean=(0.5, 0.5, 0.5))
        assert report.comparison is not None
        assert report.comparison.passed
        assert report.compiled.network.path == Path("vit_tiny_patch16_224")
        images = library.load(module).masked
        assert images.image == (32, 32)

    def test_what_is_said_about_files_is_refused(self, module, tmp_path):
        with pytest.raises(library.OptionError, match="ema: says which weights of a file"):
            library.load(module, ema=True)
        with pytest.raises(library.OptionError, match="is loaded already"):
            library.export(library.load(module), tmp_path / "m.onnx", mean=(0.5, 0.5, 0.5))
