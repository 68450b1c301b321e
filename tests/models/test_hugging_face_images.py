"""Images are prepared as transformers' processors prepare them, where that is a resize and a crop; else that is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from slimc.errors import CheckpointError
from slimc.files.images import load_images
from slimc.ir.preprocessing import Preprocessing
from slimc.models.folders import read_folder
from slimc.models.hugging_face_images import read_images
from tests.models.transformers_networks import NETWORKS, SIDE, build, hf, save

SQUASHED = "images are squashed there"
COLOURS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "resample": 2}


def picture(folder: Path, height: int, width: int) -> Path:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / "picture.png")
    return folder / "picture.png"


def described(folder: Path, values: dict[str, Any], kind: str = "clip", image: tuple[int, int] = (224, 224)):
    (folder / "preprocessor_config.json").write_text(json.dumps({**COLOURS, **values}))
    return read_images(folder, kind, image, 3)


@pytest.mark.parametrize(
    ("kind", "name", "options", "image", "size"),
    [
        ("clip", "CLIPImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_size": 32}, 32, (61, 47)),
        ("dinov2", "BitImageProcessorPil", {"size": {"shortest_edge": 41}, "crop_size": 36}, 36, (47, 90)),
        ("dinov2", "BitImageProcessorPil", {"size": {"shortest_edge": 256}, "crop_size": 224}, 224, (300, 300)),
        ("deit", "DeiTImageProcessorPil", {"size": {"height": 41, "width": 41}, "crop_size": 36}, 36, (60, 60)),
        ("vit", "ViTImageProcessorPil", {"size": {"height": 32, "width": 32}}, 32, (50, 50)),
        ("siglip", "SiglipImageProcessorPil", {"size": {"height": 32, "width": 32}, "resample": 1}, 32, (50, 50)),
        (
            "vit",
            "ViTImageProcessorPil",
            {"size": {"height": 32, "width": 32}, "do_normalize": False, "rescale_factor": 0.5},
            32,
            (50, 50),
        ),
        ("vit", "ViTImageProcessorPil", {"size": {"height": 32, "width": 32}, "rescale_factor": 0.5}, 32, (50, 50)),
    ],
)
def test_what_processors_make_is_made(kind, name, options, image, size, tmp_path):
    processor = getattr(hf, name)(**options)
    processor.save_pretrained(tmp_path)
    args, _ = read_images(tmp_path, kind, (image, image), 3)
    file = picture(tmp_path, *size)
    wanted = np.stack(processor(Image.open(file), return_tensors="np")["pixel_values"])
    prepared = {key: value for key, value in args.items() if key != "input_size"}
    prepared |= {key: prepared[key] * 3 for key in ("mean", "std") if len(prepared[key]) == 1}
    found = load_images([file], (image, image), Preprocessing(**prepared))
    assert found.shape == wanted.shape
    assert np.ptp(wanted) > 0.5
    assert np.abs(found - wanted).max() <= 1e-5 * np.ptp(wanted)


def test_a_saved_processor_is_read_with_the_network(tmp_path):
    folder = save(build(NETWORKS["clip"]), tmp_path)
    hf.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SIDE).save_pretrained(folder)
    read = read_folder(folder)
    assert read.warnings == ()
    assert read.args == {
        "input_size": (3, SIDE, SIDE),
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "std": (0.26862954, 0.26130258, 0.27577711),
        "crop_pct": SIDE / 16,
        "interpolation": "bicubic",
    }


def test_a_processor_among_others_is_read(tmp_path):
    joined = {"image_processor": {**COLOURS, "size": {"shortest_edge": 256}, "crop_size": 224}, "tokenizer": {}}
    (tmp_path / "processor_config.json").write_text(json.dumps(joined))
    args, warnings = read_images(tmp_path, "clip", (224, 224), 3)
    assert (args["crop_pct"], args["interpolation"], warnings) == (0.875, "bilinear", ())


@pytest.mark.parametrize("edge", [225, 256, 299, 354, 375, 400, 404, 408])
def test_the_shorter_side_is_the_processors_whatever_the_rounding(edge, tmp_path):
    args, warnings = described(tmp_path, {"size": {"shortest_edge": edge}, "crop_size": 224})
    assert (int(224 / args["crop_pct"]), warnings) == (edge, ())


@pytest.mark.parametrize(
    ("kind", "values", "share", "said"),
    [
        ("vit", {"size": 224}, 1.0, (SQUASHED,)),
        ("clip", {"size": 224, "crop_size": 224}, 1.0, ()),
        ("deit", {"size": 256, "crop_size": 224, "do_center_crop": True}, 0.875, (SQUASHED,)),
        ("siglip", {"size": {"height": 384, "width": 384}}, 1.0, (SQUASHED, "made 384x384 pixels there")),
        ("dinov2", {"size": {"shortest_edge": 256}, "crop_size": 240}, 0.9375, ("made 240x240 pixels there",)),
        ("vit", {"size": {"shortest_edge": 256}}, 0.875, ("not cropped there",)),
        ("vit", {"do_resize": False}, 1.0, ("not resized there",)),
        ("vit", {"size": {"shortest_edge": 224, "longest_edge": 500}}, 1.0, ("in a way that slimc has not",)),
        ("siglip2", {"max_num_patches": 256}, 1.0, ("in a way that slimc has not",)),
        ("vit", {"size": {"shortest_edge": 200}, "crop_size": 224}, 1.0, ("are padded to 224x224",)),
        ("vit", {"size": {"height": 200, "width": 200}, "crop_size": 224}, 1.0, ("are padded to", SQUASHED)),
        ("clip", {"size": 224, "crop_size": 224, "do_pad": True}, 1.0, ("do_pad is set",)),
    ],
)
def test_what_cannot_be_said_is_warned_of(kind, values, share, said, tmp_path):
    args, warnings = described(tmp_path, values, kind)
    assert args["crop_pct"] == share
    assert len(warnings) == len(said)
    assert all(part in warning for part, warning in zip(said, warnings, strict=True))


def test_what_is_not_said_is_not_made_up(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 224}))
    args, _ = read_images(tmp_path, "vit", (224, 224), 3)
    assert args == {"input_size": (3, 224, 224), "interpolation": "bilinear", "crop_pct": 1.0}
    (tmp_path / "preprocessor_config.json").unlink()
    args, (warning,) = read_images(tmp_path, "vit", (224, 224), 3)
    assert args == {"input_size": (3, 224, 224)}
    assert "has no preprocessor_config.json" in warning


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"resample": 9}, r"resample is 9; expected 0 \(nearest\)"),
        ({"image_mean": ["a"]}, "image_mean is .*; expected numbers"),
        ({"rescale_factor": 0}, "rescale_factor is 0; expected a positive number"),
        ({"size": {"height": 0, "width": 3}}, "size is .*; expected height and width"),
        ({"size": 224, "crop_size": {"height": 3}}, "crop_size is .*; expected height and width"),
    ],
)
def test_what_makes_no_sense_is_refused(values, said, tmp_path):
    with pytest.raises(CheckpointError, match=said):
        described(tmp_path, values)
