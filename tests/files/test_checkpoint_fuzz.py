"""Damaged checkpoints give a clean error or a correct result, never a crash and never another network unnoticed."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from slimc import ir
from slimc.compiler.export import export_network
from slimc.compiler.load import load_network
from slimc.compiler.options import CompileOptions
from slimc.compiler.pipeline import compile_model, passes_for
from slimc.errors import UserError
from slimc.ir.interpret.model import interpret
from slimc.targets.target import find_target
from tests.checkpoints import arguments, save, state_dict
from tests.command_line import snapshot
from tests.files.damage import BUDGETS, TINY, damaged
from tests.networks import images_for

# Beyond it float64 itself cannot tell masked and slim apart: a flipped exponent makes weights of 1e38.
LARGEST = 1e4


@pytest.fixture(params=["zip", "legacy", "safetensors"])
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "safetensors":
        path = tmp_path / "whole.safetensors"
        save_file(state_dict(TINY), path, metadata=BUDGETS)
        return path
    content = {"model": state_dict(TINY), "epoch": 3, "args": arguments()}
    return save(tmp_path / "whole.pth", content, legacy=request.param == "legacy")


@dataclass(frozen=True)
class Fuzzed:
    """Where damaged copies of a checkpoint are put, and what the sound one computes."""

    path: Path
    content: bytes
    logits: ir.FloatArray


@pytest.fixture
def fuzzed(whole: Path) -> Fuzzed:
    network = load_network(whole, {}).masked
    return Fuzzed(whole.with_stem("damaged"), whole.read_bytes(), interpret(network, images_for(network)))


def outcome(fuzzed: Fuzzed, seed: int) -> str:
    """What becomes of one damaged copy: "error", "same" or "other" where its weights are others than before."""
    fuzzed.path.write_bytes(damaged(fuzzed.content, seed))
    try:
        searched = load_network(fuzzed.path, {})
    except UserError as error:
        assert error.exit_code == 2
        assert "\n" not in str(error)
        assert str(error).startswith((str(fuzzed.path), "--"))
        return "error"
    masked = ir.to_float64(searched.masked)
    slim = compile_model(masked, passes_for(find_target("generic")))
    images = images_for(masked)
    logits = interpret(masked, images)
    if max(np.abs(array).max(initial=0) for array in ir.arrays(masked)) < LARGEST:
        limit = 1e-9 * max(1.0, float(np.abs(logits).max()))
        np.testing.assert_allclose(interpret(slim, images), logits, rtol=0, atol=limit)
    same = logits.shape == fuzzed.logits.shape and np.array_equal(logits, fuzzed.logits)
    return "same" if same else "other"


def test_a_damaged_file_is_an_error_or_a_correct_network(fuzzed):
    outcomes = Counter(outcome(fuzzed, seed) for seed in range(300))
    assert outcomes["error"] > 100
    # A zip archive has checksums: there, damage never makes another network.
    assert outcomes["other"] == 0 or not fuzzed.content.startswith(b"PK")


def test_exporting_a_damaged_file_writes_all_or_nothing(fuzzed, tmp_path):
    directory = tmp_path / "out"
    directory.mkdir()
    done = 0
    for seed in range(1000, 1060):
        fuzzed.path.write_bytes(damaged(fuzzed.content, seed))
        try:
            export_network(load_network(fuzzed.path), directory / "model.onnx", CompileOptions())
        except UserError as error:
            assert "\n" not in str(error)
            assert snapshot(directory) == {}
        else:
            done += 1
            assert set(snapshot(directory)) == {"model.onnx", "model.reference.npz"}
            for path in directory.iterdir():
                path.unlink()
    assert done < 60
