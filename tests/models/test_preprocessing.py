"""How images become inputs comes from the file, else from options, else it is ImageNet's, and that is said."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import slimc
from slimc.errors import CheckpointError, OptionError
from slimc.files.checkpoint import read_checkpoint
from slimc.files.metadata import preprocessing_json, read_preprocessing
from slimc.ir.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from slimc.models.options import VitSlimOptions
from slimc.models.preprocessing import input_size, override
from slimc.models.preprocessing import read_preprocessing as read
from slimc.models.systems import recognises
from tests.artefacts import OPTIONS, VECTORS
from tests.checkpoints import Recipe, arguments, save, state_dict
from tests.command_line import slimc as run

HALF = (0.5, 0.5, 0.5)


def understood(args: dict[str, Any], image: tuple[int, int] = (224, 224), channels: int = 3, **options: Any):
    checkpoint: Any = SimpleNamespace(path=Path("c.pth"), args=args)
    return read(checkpoint, image, VitSlimOptions(**options), channels=channels)


def test_timms_arguments_are_taken():
    args = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3], "crop_pct": 0.9, "interpolation": "bilinear"}
    assert understood(args) == (Preprocessing((0.5, 0.4, 0.3), (0.1, 0.2, 0.3), 0.9, "bilinear"), ())


def test_one_number_is_that_of_every_channel():
    found, _ = understood({"mean": [0.5], "std": [0.25]})
    assert (found.mean, found.std) == (HALF, (0.25, 0.25, 0.25))


@pytest.mark.parametrize(("imagenet", "mean", "std"), [(True, IMAGENET_MEAN, IMAGENET_STD), (False, HALF, HALF)])
def test_dynamic_vits_flag_is_taken(imagenet, mean, std):
    found, warnings = understood({"imagenet_default_mean_and_std": imagenet, "crop_pct": None})
    assert found == Preprocessing(mean, std)
    assert warnings == ()


@pytest.mark.parametrize("name", ["pretrained_cfg", "default_cfg"])
@pytest.mark.parametrize("beside", [True, False])
def test_timms_configuration_is_taken_wherever_it_stands(name, beside, tmp_path):
    config = {"mean": HALF, "std": HALF, "crop_pct": 1.0, "interpolation": "bicubic", "input_size": (3, 4, 10)}
    args = {key: value for key, value in vars(arguments()).items() if key not in ("mean", "std")}
    args |= {} if beside else {name: config}
    state = state_dict(Recipe(grid=(2, 5)))
    path = save(tmp_path / "c.pth", {"model": state, "args": args, **({name: config} if beside else {})})
    network = slimc.load(path)
    assert network.preprocessing == Preprocessing(HALF, HALF, 1.0)
    assert network.masked.image == (4, 10)
    assert network.warnings == ()


def test_arguments_come_before_the_configuration():
    config = {"mean": HALF, "std": HALF, "crop_pct": 0.95}
    found, _ = understood({"mean": [0.1] * 3, "std": None, "interpolation": "", "pretrained_cfg": config})
    assert found == Preprocessing((0.1, 0.1, 0.1), HALF, 0.95)


def test_what_nobody_says_is_imagenets_and_said():
    found, (warning,) = understood({})
    assert found == Preprocessing()
    assert "does not say how images were normalised" in warning
    assert "--mean and --std" in warning
    _, (warning,) = understood({"mean": [0.5]})
    assert ("--std" in warning, "--mean" in warning) == (True, False)


def test_options_override_the_file_and_a_contradiction_is_said():
    args = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9}
    found, warnings = understood(args, mean=IMAGENET_MEAN, std=HALF, crop_pct=1)
    assert found == Preprocessing(IMAGENET_MEAN, HALF, 1.0)
    assert [warning.split(": ")[1] for warning in warnings] == [
        "--mean 0.485 0.456 0.406 overrides args.mean, which is 0.5 0.5 0.5",
        "--crop-pct 1.0 overrides args.crop_pct, which is 0.9",
    ]
    assert understood({}, mean=HALF, std=HALF)[1] == ()


def test_an_option_mends_what_the_file_says_wrongly():
    with pytest.raises(CheckpointError, match=r"args.interpolation: 'random' .* give --interpolation"):
        understood({"interpolation": "random"})
    assert understood({"interpolation": "random"}, interpolation="bicubic")[0].interpolation == "bicubic"


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ({"mean": "half"}, r"args.mean: half cannot be used; expected numbers"),
        ({"mean": [0.5, 0.5]}, r"are 2 numbers for images of 3 channel"),
        ({"mean": [float("nan")] * 3}, "args.mean: "),
        ({"std": [0, 1, 1]}, "expected positive numbers"),
        ({"crop_pct": 1.5}, "args.crop_pct: 1.5 is no share"),
        ({"crop_pct": True}, "args.crop_pct: True is no share"),
        ({"crop_mode": "squash"}, "crop_mode is 'squash'"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode is 'border'"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(args, match):
    with pytest.raises(CheckpointError, match=match):
        understood(args)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"mean": (0.5, 0.5)}, "--mean: "), ({"crop_pct": 0}, "--crop-pct: "), ({"interpolation": "best"}, "--interpol")],
)
def test_options_that_cannot_be_used_are_refused(options, match):
    with pytest.raises(OptionError, match=match):
        understood({}, **options)


def test_small_images_are_not_cropped_nor_dynamic_vits_large_ones():
    assert understood({}, (32, 32))[0].crop_pct == 1.0
    assert understood({"crop_pct": 0.875}, (32, 32))[0].crop_pct == 0.875
    assert understood({}, (384, 384))[0].crop_pct == 0.875
    found, (warning,) = understood({"imagenet_default_mean_and_std": True}, (384, 384))
    assert found.crop_pct == 1.0
    assert "squashes" in warning


def test_one_channel_has_one_mean():
    assert understood({"mean": [0.1], "std": [0.3]}, channels=1)[0] == Preprocessing((0.1,), (0.3,))
    assert understood({"mean": [0.5] * 3, "std": [0.5] * 3}, channels=1)[0] == Preprocessing((0.5,), (0.5,))
    assert understood({}, channels=1)[0] == Preprocessing((0.449,), (0.226,))
    with pytest.raises(CheckpointError, match=r"are 3 numbers for images of 1 channel"):
        understood({"mean": IMAGENET_MEAN}, channels=1)


def test_overriding_leaves_what_is_not_said():
    own = Preprocessing(HALF, HALF, 0.9, "bilinear")
    assert override(own, {"mean": None, "num_heads": 3}) == own
    assert override(own, {"std": (0.1, 0.2, 0.3)}) == Preprocessing(HALF, (0.1, 0.2, 0.3), 0.9, "bilinear")
    with pytest.raises(OptionError, match="--std"):
        override(own, {"std": (0.0, 0.2, 0.3)})


@pytest.mark.parametrize("size", [8, [3, 8, 8]])
def test_the_input_size_is_found_under_either_name(size):
    assert input_size({"input_size": None, "img_size": size}) == size
    assert input_size({"pretrained_cfg": {"input_size": size}}) == size
    assert input_size({}) is None


@pytest.mark.parametrize("vector", ["channel", "deit", "lvvit", "gates", "tokens"])
def test_every_system_reads_it(vector, tmp_path):
    content = torch.load(VECTORS[vector], map_location="cpu", weights_only=False)
    content["args"].mean, content["args"].std, content["args"].crop_pct = list(HALF), list(HALF), 0.95
    path = save(tmp_path / "c.pth", content)
    assert slimc.load(path, **OPTIONS.get(vector, {})).preprocessing == Preprocessing(HALF, HALF, 0.95)
    network = slimc.load(path, **OPTIONS.get(vector, {}), std=(0.25, 0.25, 0.25))
    assert network.preprocessing.std == (0.25, 0.25, 0.25)
    assert any("--std" in warning for warning in network.warnings)


def test_the_model_says_it_and_it_is_read_back(tmp_path):
    path, options = tmp_path / "m.onnx", ["--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25"]
    outcome = run("export", VECTORS["channel"], "-o", path, *options, "--crop-pct", "0.9", "--interpolation", "box")
    assert (outcome.code, outcome.stderr) == (0, "")
    facts = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(facts["slimc.preprocessing"]) == {
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "crop_pct": 0.9,
        "interpolation": "box",
        "input_size": [3, 56, 56],
    }
    assert slimc.read_metadata(path).preprocessing == Preprocessing(HALF, (0.25, 0.25, 0.25), 0.9, "box")
    inspected = run("inspect", path)
    assert "mean 0.5 0.5 0.5, std 0.25 0.25 0.25, 0.9 of the box resized image" in inspected.stdout
    assert json.loads(run("inspect", path, "--json").stdout)["preprocessing"]["crop_pct"] == 0.9


def test_export_and_inspect_warn_once_where_nobody_says(tmp_path):
    for command in (["export", VECTORS["channel"], "-o", tmp_path / "m.onnx"], ["inspect", VECTORS["channel"]]):
        assert run(*command).stderr.count("does not say how images were normalised") == 1


def test_models_without_the_later_facts_are_read():
    assert read_preprocessing({"mean": HALF, "std": HALF}) == Preprocessing(HALF, HALF, 0.875, "bicubic")
    own = Preprocessing((0.1,), (0.2,), 1.0, "nearest")
    assert read_preprocessing(json.loads(json.dumps(preprocessing_json(own, (28, 28))))) == own
    for wrong in ({"crop_pct": 2.0}, {"interpolation": "best"}, {"std": (1.0,)}):
        with pytest.raises(ValueError, match="no preprocessing"):
            read_preprocessing({"mean": HALF, "std": HALF, **wrong})


def test_the_demos_model_states_what_its_training_did(tmp_path):
    from slimc.cli.demo import digits, run_demo

    result = run_demo(tmp_path)
    assert result.correct == {"dense": 349, "masked": 348, "slim": 348}
    metadata = slimc.read_metadata(tmp_path / "digits-slim.onnx")
    assert metadata.preprocessing == Preprocessing(HALF, HALF, 1.0)
    images, _ = digits()
    assert float(np.abs(images).max()) == 1.0
    assert read_checkpoint(VECTORS["digits"], recognises).args.get("mean") is None
