"""DynamicViT on the command line: what must be said, one-line errors, the table and picture of selections."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from slimc.files.structure import Structure
from tests.command_line import slimc, snapshot
from tests.selecting import VECTORS, Vector, random_checkpoint, small_config

DEIT = VECTORS[0]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A state dict and nothing else, of no published size."""
    path = tmp_path / "bare.pth"
    torch.save({"model": dict(random_checkpoint(small_config()).state)}, path)
    return path


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_export_then_verify(vector: Vector, tmp_path: Path):
    model = tmp_path / "small.onnx"
    done = slimc("export", vector.checkpoint, "-o", model, *vector.flags, "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["system"], report["settings"]["keep"]) == ("dynamic_vit", [137, 96, 67])
    assert report["verify"]["choices"] == {"kind": "kept_patches", "stages": [1.0, 1.0, 1.0], "equal": 4, "inputs": 4}
    assert report["macs"]["slim"] < report["macs"]["dense"]
    verified = slimc("verify", model)
    assert verified.code == 0, verified.stdout
    assert "kept patches, by stage" in verified.stdout
    again = slimc("verify", model, "--against", vector.checkpoint, *vector.flags, "--json")
    assert json.loads(again.stdout)["artefacts"][0]["comparison"]["choices"]["equal"] == 4


def test_a_bare_file_is_told_everything(bare: Path, tmp_path: Path):
    flags = ("--num-heads", 2, "--pruning-loc", "1,2", "--keep-ratios", "0.5,0.25", "--img-size", 6, 8)
    done = slimc("export", bare, "-o", tmp_path / "m.onnx", *map(str, flags), "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["settings"] == {"keep": [6, 3], "pruning_loc": [1, 2], "keep_ratios": [0.5, 0.25]}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ((), "--keep-rate"),
        (("--keep-rate", "0.7"), "--img-size"),
        (("--keep-rate", "0.7", "--img-size", "6", "8"), "--num-heads"),
        (("--keep-rate", "0.7", "--img-size", "6", "8", "--num-heads", "2"), "--pruning-loc"),
        (("--keep-rate", "most",), "--keep-rate: 'most' is not a share"),
        (("--keep-ratios", "0.5,2",), "--keep-ratios: 2 is not a share"),
        (("--keep-ratios", "0.5,",), "--keep-ratios: '' is not a share"),
        (("--pruning-loc", "1;2",), "--pruning-loc: '1;2' are not blocks"),
        (("--budget", "0.7"), "--budget: DynamicViT checkpoints have no such setting"),
    ],
)  # fmt: skip
def test_what_is_missing_or_wrong_is_one_line_and_nothing_is_written(bare: Path, tmp_path: Path, flags, named):
    before = snapshot(tmp_path)
    done = slimc("export", bare, "-o", tmp_path / "m.onnx", *flags)
    assert done.code == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert snapshot(tmp_path) == before


def test_inspect_counts_tokens_and_the_cost_of_predictors():
    done = slimc("inspect", DEIT.checkpoint, *DEIT.flags, "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    layers = report["layers"]
    assert [layer["tokens"] for layer in layers] == [197] * 3 + [138] * 3 + [97] * 3 + [68] * 3
    assert [layer["tokens_before"] for layer in layers[3::3]] == [197, 138, 97]
    assert [layer["scorer_macs"] > 0 for layer in layers] == [i in (3, 6, 9) for i in range(12)]
    # LayerNorm aside: 48x48 into, 24x24 each half of the first layer (the shared one once), 24x12, 12x1, and the mean.
    assert layers[3]["scorer_macs"] == 197 * (48 * 48 + 24 * 24 + 24 * 12 + 12 + 24) + 24 * 24
    assert len(layers[2]["patches"]) == 196
    assert layers[3]["patches"] == []
    printed = slimc("inspect", DEIT.checkpoint, *DEIT.flags).stdout
    assert "selection before" in printed
    assert "predictor MACs" in printed


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_the_picture_shows_what_the_network_keeps(vector: Vector, picture: Path, tmp_path: Path):
    first, second, model = tmp_path / "first.png", tmp_path / "second.png", tmp_path / "m.onnx"
    of_checkpoint = slimc("inspect", vector.checkpoint, *vector.flags, "--plot", first, "--image", picture, "--json")
    assert of_checkpoint.code == 0, of_checkpoint.stderr
    kept = json.loads(of_checkpoint.stdout)["kept_patches"]
    assert [len(set(stage)) for stage in kept] == [137, 96, 67]
    assert set(kept[2]) < set(kept[1]) < set(kept[0]) < set(range(196))
    assert slimc("export", vector.checkpoint, "-o", model, *vector.flags, "-q").code == 0
    of_model = slimc("inspect", model, "--plot", second, "--image", picture, "--json")
    assert json.loads(of_model.stdout)["kept_patches"] == kept
    with Image.open(first) as drawn, Image.open(second) as again:
        assert drawn.size == again.size
        assert drawn.height > 1000


def test_an_image_needs_a_plot_and_a_network_that_selects(picture: Path, tmp_path: Path):
    plot = tmp_path / "p.png"
    alone = slimc("inspect", DEIT.checkpoint, *DEIT.flags, "--image", picture)
    assert (alone.code, alone.stderr.strip()) == (2, "error: --image: is drawn; give --plot OUT.png too")
    dense = tmp_path / "dense.onnx"
    assert slimc("export", DEIT.checkpoint, "-o", dense, *DEIT.flags, "--dense", "-q").code == 0
    still = slimc("inspect", dense, "--plot", plot, "--image", picture)
    assert still.code == 2
    assert "selects no patches" in still.stderr
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    unreadable = slimc("inspect", DEIT.checkpoint, *DEIT.flags, "--plot", plot, "--image", text)
    assert unreadable.code == 2
    assert f"--image: {text} is not a readable image" in unreadable.stderr
    assert not plot.exists()


def test_without_an_image_the_plot_says_that_patches_depend_on_it(tmp_path: Path):
    plot = tmp_path / "p.svg"
    assert slimc("inspect", DEIT.checkpoint, *DEIT.flags, "--plot", plot).code == 0
    assert plot.stat().st_size > 1000


def test_a_structure_without_selections_has_none():
    structure = Structure((4, 4), (2, 2), 8, 1, 4, 8, ())
    assert structure.selecting == ()
