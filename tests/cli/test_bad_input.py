"""Checkpoints, models and outputs that cannot be used: one line, exit code 2, and nothing is written."""

import io
import resource
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.artefacts import VECTORS
from tests.checkpoints import State, arguments, save, small_checkpoint, state_dict
from tests.command_line import assert_refused, slimc


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return small_checkpoint(tmp_path / "ckpt.pth")


def change(key: str, function: Callable[[torch.Tensor], torch.Tensor]) -> State:
    state = state_dict()
    state[key] = function(state[key])
    return state


def without(key: str) -> State:
    state = state_dict()
    del state[key]
    return state


def poisoned(number: float) -> State:
    state = state_dict()
    state["norm.weight"][3] = number
    return state


BAD_STATES: dict[str, tuple[State, str]] = {
    "a missing key": (without("blocks.1.norm2.bias"), "the state dict has no blocks.1.norm2.bias"),
    "a wrong shape": (change("head.weight", lambda w: w[:, :5]), "head.weight has the shape [5, 5], expected [5, 12]"),
    "nan": (poisoned(float("nan")), "norm.weight has NaN or Inf"),
    "inf": (poisoned(float("inf")), "norm.weight has NaN or Inf"),
    "integer weights": (change("head.bias", lambda w: w.to(torch.int64)), "expected floating-point weights"),
    "a zeta of a wrong shape": (
        change("blocks.0.attn.zeta", lambda w: w[..., :3]),
        "blocks.0.attn.zeta has 3 x 3 entries, which do not fit a width of 12",
    ),
    "an ffn zeta of a wrong shape": (
        change("blocks.1.mlp.zeta", lambda w: w[..., :3]),
        "blocks.1.mlp.zeta has the shape [1, 1, 3], expected [1, 1, 16]",
    ),
    "a patch zeta of a wrong shape": (
        change("blocks.1.attn.patch_zeta", lambda w: w[:, :3]),
        "blocks.1.attn.patch_zeta has the shape [1, 3, 1], expected [1, 10, 1]",
    ),
}


class TestBadInput:
    """Each one line, exit code 2, nothing written."""

    @pytest.mark.parametrize("kind", BAD_STATES)
    def test_state_dicts(self, tmp_path, kind):
        state, reason = BAD_STATES[kind]
        path = save(tmp_path / "c.pth", {"model": state, "args": arguments()})
        assert_refused("export", path, "-o", tmp_path / "m.onnx", match=reason, directory=tmp_path)

    @pytest.mark.parametrize("kind", ["missing", "empty", "cut", "image", "directory", "evil"])
    def test_files(self, tmp_path, kind, checkpoint):
        path = tmp_path / "c.pth"
        if kind == "empty":
            path.touch()
        elif kind == "cut":
            path.write_bytes(checkpoint.read_bytes()[:-300])
        elif kind == "image":
            from PIL import Image

            Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
            path = tmp_path / "c.png"
        elif kind == "directory":
            path.mkdir()
        elif kind == "evil":
            save(path, {"model": state_dict(), "args": sys.exit})
        assert_refused("export", path, "-o", tmp_path / "m.onnx", match=f"{path}: ", directory=tmp_path)

    @pytest.mark.parametrize("value", ["0", "1.2", "-1", "most", "nan", "inf", "", "0,5"])
    @pytest.mark.parametrize("option", ["--budget", "--budget-attn", "--budget-mlp", "--budget-patch"])
    def test_budgets(self, tmp_path, checkpoint, option, value):
        given = ["export", checkpoint, "-o", tmp_path / "m.onnx", f"{option}={value}"]
        assert_refused(*given, match="expected a number above 0 and up to 1", directory=tmp_path)

    def test_no_budgets(self, tmp_path):
        path = save(tmp_path / "searched.pth", {"model": state_dict(), "epoch": 3})
        match = "searched.pth: a search-stage checkpoint, without budgets; give --budget B, or --budget-attn"
        assert_refused("export", path, "-o", tmp_path / "m.onnx", match=match, directory=tmp_path)
        assert slimc("export", path, "-o", tmp_path / "m.onnx", "--budget", "0.7", "--quiet").code == 0

    def test_the_dense_network_needs_no_budget(self, tmp_path):
        path = save(tmp_path / "searched.pth", {"model": state_dict(), "epoch": 3})
        assert slimc("export", path, "-o", tmp_path / "m.onnx", "--dense", "--quiet").code == 0
        deit = ["--num-heads", "4", "--pruning-loc", "3,6,9"]
        content = torch.load(VECTORS["deit"], weights_only=False)
        unsaid = save(tmp_path / "deit.pth", {"model": content["model"]})
        assert_refused("export", unsaid, "-o", tmp_path / "d.onnx", *deit, match="no keep rate", directory=tmp_path)
        assert slimc("export", unsaid, "-o", tmp_path / "d.onnx", "--dense", *deit, "--quiet").code == 0

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            (["--batch-size", "0"], "--batch-size: 0 images make no batch; expected at least 1"),
            (["--batch-size", "-2"], "expected at least 1"),
            (["--opset", "16"], "--opset: 16 cannot be emitted; expected 17 to 23"),
            (["--opset", "99"], "expected 17 to 23"),
            (["--target", "sm1"], "--target: 'sm1' is unknown; expected one of generic, cpu, sm75"),
            (["--dense", "--masked"], "give one of them"),
            (["--qk-scale", "0"], "--qk-scale: 0.0 is not a scale"),
            (["--num-heads", "5"], "--num-heads: 5 contradicts the checkpoint"),
            (["--img-size", "5", "5"], "does not give the 9 patches"),
            (["--ema"], "has no averaged weights"),
            (["--data", "missing"], "--data: missing is not a directory"),
            (["--precision", "int4"], "--precision"),
        ],
    )
    def test_options(self, tmp_path, checkpoint, options, match):
        given = ["export", checkpoint, "-o", tmp_path / "m.onnx", *options]
        assert_refused(*given, match=match, directory=tmp_path)

    def test_a_folder_without_images_and_an_image_that_is_none(self, tmp_path, checkpoint):
        folder = tmp_path / "images"
        folder.mkdir()
        given = ["export", checkpoint, "-o", tmp_path / "m.onnx", "--data", folder]
        assert_refused(*given, match="holds no image; expected .png", directory=tmp_path)
        (folder / "a.png").write_bytes(b"not an image")
        assert_refused(*given, match="a.png is not a readable image", directory=tmp_path)

    def test_outputs(self, tmp_path, checkpoint):
        export = ["export", checkpoint, "-o"]
        assert_refused(*export, tmp_path, match="is a directory; expected a file name", directory=tmp_path)
        assert_refused(*export, tmp_path / "no/m.onnx", match="does not exist", directory=tmp_path)
        assert_refused(*export, "/proc/m.onnx", match="/proc/m.onnx: ", directory=tmp_path)

    def test_an_output_that_would_overwrite_the_checkpoint(self, tmp_path, checkpoint):
        assert_refused("export", checkpoint, "-o", checkpoint, match="is the checkpoint itself", directory=tmp_path)

    def test_a_model_where_a_checkpoint_is_expected(self, tmp_path, checkpoint):
        assert slimc("export", checkpoint, "-o", tmp_path / "m.onnx", "--quiet").code == 0
        assert_refused("export", tmp_path / "m.onnx", "-o", tmp_path / "n.onnx", match="m.onnx: ", directory=tmp_path)

    @pytest.mark.parametrize("command", ["inspect", "verify"])
    def test_models_that_are_none(self, tmp_path, command):
        path = tmp_path / "m.onnx"
        assert_refused(command, path, match="m.onnx: no such", directory=tmp_path)
        path.write_bytes(b"not a model")
        assert_refused(command, path, match="m.onnx: ", directory=tmp_path)

    def test_json_keeps_stdout_for_json(self, tmp_path):
        assert_refused("export", tmp_path / "no.pth", "--json", match="no such file", directory=tmp_path)

    def test_a_full_disk(self, tmp_path, checkpoint):
        """By a limit on the size of files, which every machine has."""
        (tmp_path / "m.onnx").write_text("old")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
        try:
            given = ["export", checkpoint, "-o", tmp_path / "m.onnx"]
            assert_refused(*given, match="m.onnx: cannot be written: File too large", directory=tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_zip_bomb_of_a_checkpoint_is_refused_before_it_unfolds(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(50_000_000))
    (tmp_path / "bomb.pth").write_bytes(stream.getvalue())
    assert_refused("export", tmp_path / "bomb.pth", match="a compressed zip archive", directory=tmp_path)
