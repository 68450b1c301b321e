"""Checkpoints of every layout are read alike, and files that are none are refused in one line without running anything."""

import argparse
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from slimc import ir
from slimc.compiler.load import load_network
from slimc.errors import BudgetError, CheckpointError, OptionError
from slimc.files.checkpoint import choose_weights, read_checkpoint
from slimc.ir.interpret.model import interpret
from slimc.models.systems import recognise, recognises
from tests import vectors
from tests.checkpoints import Recipe, arguments, save, small_checkpoint, state_dict
from tests.networks import images_for

BUDGETS = {"budget_attn": 0.7, "budget_mlp": 0.7, "budget_patch": 0.7}


def logits(path: Path, options: dict[str, float] | None = None, *, ema: bool | None = None) -> ir.FloatArray:
    network = load_network(path, options, ema=ema).masked
    return interpret(network, images_for(network))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> ir.FloatArray:
    return logits(small_checkpoint(tmp_path_factory.mktemp("plain") / "plain.pth"))


LAYOUTS = {
    "model and args": {"model": state_dict(), "args": arguments()},
    "state_dict": {"state_dict": state_dict(), "args": arguments()},
    "args as a dict": {"model": state_dict(), "args": vars(arguments())},
    "module. prefix": {"model": {f"module.{key}": value for key, value in state_dict().items()}, "args": arguments()},
    "what training saves besides": {
        "model": state_dict(),
        "args": arguments(output_dir=Path("out").name, lr=1e-4, names=["a"], distributed=True),
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 299,
        "max_accuracy": np.float64(79.9),
        "accuracies": [np.float32(1.5), np.int64(3), np.bool_(True)],
        "scaler": {},
        "lr_scheduler": None,
    },
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".pth", ".pth.tar"])
def test_layouts_of_torch_files_are_read_alike(tmp_path, expected, layout, legacy, suffix):
    path = save(tmp_path / f"file{suffix}", LAYOUTS[layout], legacy=legacy)
    np.testing.assert_array_equal(logits(path), expected)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_bare_state_dict_is_read_once_it_has_budgets(tmp_path, expected, legacy):
    path = save(tmp_path / "bare.pt", state_dict(), legacy=legacy)
    np.testing.assert_array_equal(logits(path, BUDGETS), expected)
    with pytest.raises(BudgetError, match=r"bare.pt: a search-stage checkpoint, without budgets; give --budget"):
        logits(path)


def test_safetensors_are_read_with_budgets_from_metadata_or_options(tmp_path, expected):
    told, bare = tmp_path / "told.safetensors", tmp_path / "bare.safetensors"
    save_file(state_dict(), told, metadata={f"budget_{kind}": "0.7" for kind in ("attn", "mlp", "patch")})
    save_file(state_dict(), bare)
    np.testing.assert_array_equal(logits(told), expected)
    np.testing.assert_array_equal(logits(bare, BUDGETS), expected)
    with pytest.raises(BudgetError, match="without budgets"):
        logits(bare)


def test_options_come_before_what_the_file_says(tmp_path):
    path = small_checkpoint(tmp_path / "c.pth", attn=0.5, mlp=0.5, patch=0.5)
    searched = load_network(path, {"budget_mlp": 0.9})
    assert searched.settings["budgets"] == {"attn": 0.5, "mlp": 0.9, "patch": 0.5}


def test_averaged_weights_are_taken_when_asked_for_and_only_then(tmp_path, expected):
    averaged = state_dict(Recipe(seed=1))
    content = {"model": state_dict(), "model_ema": averaged, "args": arguments()}
    path = save(tmp_path / "ema.pth", content)
    np.testing.assert_array_equal(logits(path), expected)
    np.testing.assert_array_equal(logits(path, ema=False), expected)
    alone = save(tmp_path / "alone.pth", {"model": averaged, "args": arguments()})
    np.testing.assert_array_equal(logits(path, ema=True), logits(alone))
    assert choose_weights(read_checkpoint(path, recognises), ema=True, averaged=False).ema


def test_averaged_weights_that_are_not_there_are_an_error(tmp_path):
    with pytest.raises(
        OptionError, match=r"--ema: .*c.pth has no averaged weights beside model \(looked for .*model_ema"
    ):
        load_network(small_checkpoint(tmp_path / "c.pth"), ema=True)


def test_the_perturbed_average_of_the_released_files_is_not_picked():
    path = vectors.DATA / "vitslim-a-channel-0.7" / "checkpoint.pth"
    assert not choose_weights(read_checkpoint(path, recognises), ema=None, averaged=False).ema
    plain, averaged = (load_network(path, {}, ema=ema).masked for ema in (None, True))
    assert not np.array_equal(plain.embedding.prefix, averaged.embedding.prefix)


def test_the_digest_is_that_of_the_file(tmp_path):
    import hashlib

    path = small_checkpoint(tmp_path / "c.pth")
    assert read_checkpoint(path, recognises).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_sixteen_bit_weights_are_widened(tmp_path):
    state = {key: value.to(torch.bfloat16) for key, value in state_dict().items()}
    path = save(tmp_path / "half.pth", {"model": state, "args": arguments()})
    widened = save(tmp_path / "wide.pth", {"model": {k: v.float() for k, v in state.items()}, "args": arguments()})
    np.testing.assert_array_equal(logits(path), logits(widened))


def png() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


def zipped(content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return stream.getvalue()


NOT_CHECKPOINTS = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello, world\n" * 9, "not a checkpoint but a text file, which begins 'hello, world"),
    "an image": (png(), "not a checkpoint but a PNG image"),
    "zeros": (bytes(4096), "not a checkpoint but something unknown"),
    "a zip of something else": (zipped({"a.txt": b"hello"}), r"a zip archive of something else \(it holds a.txt\)"),
    "a compressed zip": (zipped({"a/data.pkl": b"N."}, zipfile.ZIP_DEFLATED), "a compressed zip archive"),
    "an empty zip": (zipped({}), "an empty zip archive"),
    "a NumPy archive": (zipped({"a.npy": b"hello"}), r"a NumPy archive \(.npz\); .*torch.save it"),
    "a Keras archive": (zipped({"config.json": b"{}", "model.weights.h5": b"x"}), "a Keras archive"),
    "a pickled list": (pickle.dumps([1, 2, 3]), "a pickle that torch.save did not write"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer.*git lfs pull"),
    "a web page": (b"\n<!DOCTYPE html>\n<html><head>", "an HTML page; .*fetch the file itself"),
    "a server's error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML text"),
    "JSON": (b'{"message": "not found"}', "a JSON text"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    "GGUF": (b"GGUF\x03" + bytes(99), "a GGUF file"),
    "SavedModel": (b"\x08\x01\x12\xff\xff\x03" + bytes(99), "a TensorFlow SavedModel"),
    "a TensorFlow checkpoint": (bytes(99) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "part of a TensorFlow checkpoint"),
    "an ONNX model": (b"\x08\x0a\x12\x05slimc:" + bytes(99), "an ONNX model; .*slimc verify"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "a gzip archive; .*unpack it"),
    "an engine": (b"ptrt" + bytes(99), "a TensorRT engine; .*slimc verify"),
}


@pytest.mark.parametrize("kind", NOT_CHECKPOINTS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_no_checkpoint_is_told_by_its_content_in_one_line(tmp_path, kind, suffix):
    content, reason = NOT_CHECKPOINTS[kind]
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_checkpoint(path, recognises)
    assert str(caught.value).startswith(f"{path}: ")
    assert "; expected a .pth, .pth.tar, .pt or .safetensors checkpoint" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_no_file_and_a_directory_are_refused(tmp_path, suffix):
    with pytest.raises(CheckpointError, match=f"missing{suffix}: no such file"):
        read_checkpoint(tmp_path / f"missing{suffix}", recognises)
    (tmp_path / f"dir{suffix}").mkdir()
    with pytest.raises(CheckpointError, match=r"is a directory; expected a .pth"):
        read_checkpoint(tmp_path / f"dir{suffix}", recognises)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_truncated_file_is_refused(tmp_path, share, legacy):
    whole = save(tmp_path / "whole.pth", {"model": state_dict(), "args": arguments()}, legacy=legacy).read_bytes()
    path = tmp_path / "cut.pth"
    path.write_bytes(whole[: max(1, int(share * len(whole)))])
    with pytest.raises(CheckpointError, match=r"cut.pth: (a truncated or damaged zip|not a readable torch)"):
        read_checkpoint(path, recognises)


def test_a_damaged_weight_in_a_zip_is_noticed_by_its_checksum(tmp_path):
    path = small_checkpoint(tmp_path / "c.pth")
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    content[largest.header_offset + 200] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        read_checkpoint(path, recognises)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model": {}}, "no state dict"),
        ({"model": {"a": 1}}, r"no state dict \(found model\)"),
        ({}, r"no state dict \(found nothing\)"),
        ({1: torch.zeros(2)}, r"no state dict \(found 1\)"),
        (torch.zeros(3), "holds a Tensor, not a dict"),
        ([torch.zeros(3)], "holds a list, not a dict"),
        ({"conv1.weight": torch.zeros(3)}, r"no network slimc knows \(keys conv1.weight"),
    ],
)
def test_a_file_of_something_else_says_what_was_found_and_what_is_accepted(tmp_path, content, reason):
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_network(save(tmp_path / "other.pth", content))
    assert "expected a .pth, .pth.tar, .pt or .safetensors checkpoint" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "system"),
    [
        ("blocks.0.attn.patch_zeta", "vit_slim"),
        ("score_predictor.0.in_conv.0.weight", "dynamic_vit"),
        ("blocks.0.attn.query.weight", "ada_vit"),
    ],
)
def test_the_system_is_recognised_from_the_keys(tmp_path, key, system):
    assert (
        recognise(read_checkpoint(save(tmp_path / "c.pth", {"model": {key: torch.zeros(2)}}), recognises)).name
        == system
    )


def test_arguments_that_are_no_arguments_are_no_arguments(tmp_path):
    path = save(tmp_path / "c.pth", {"model": state_dict(), "args": "python retrain.py"})
    assert read_checkpoint(path, recognises).args == {}
    named = save(tmp_path / "d.pth", {"model": state_dict(), "args": argparse.Namespace(budget_attn=0.5)})
    assert read_checkpoint(named, recognises).args == {"budget_attn": 0.5}
