"""Whatever objects of the training code lie beside the weights are inert, and foreign files are told by their content."""

import argparse
import collections
import datetime
import enum
import functools
import pathlib
import pickle
import random
import types
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from slimc.compiler.load import load_network
from slimc.errors import CheckpointError
from slimc.files.checkpoint import read_checkpoint
from slimc.models.systems import recognises
from tests.checkpoints import arguments, save
from tests.files.test_checkpoint_layouts import STATE, assert_is


class Mode(enum.Enum):
    FAST = "fast"


class Settings:
    def __init__(self) -> None:
        self.depth, self.itself = 4, self


def nothing(_value: int) -> None:
    """A function to name in a pickle."""


OBJECTS: dict[str, Any] = {
    "paths": [pathlib.Path("runs"), pathlib.PureWindowsPath("C:/runs")],
    "dates": [datetime.datetime(2024, 1, 2), datetime.timedelta(3)],
    "enum": Mode.FAST,
    "scalars": [np.float16(1), np.uint8(3), np.complex64(1), np.str_("a"), np.datetime64("2024-01-02"), np.bool_(1)],
    "arrays": [np.arange(3), np.zeros((2, 0)), np.array(["a"]), np.array([None, {}], object), np.ones(2, ">f4")],
    "random states": [random.getstate(), np.random.get_state(), torch.get_rng_state(), np.random.default_rng(0)],
    "containers": [collections.defaultdict(list, a=[1]), collections.Counter("aab"), {1, 2}, frozenset({3}), b"bytes"],
    "more containers": [collections.deque([1]), range(3), slice(1, 2), bytearray(b"a"), 1j, torch.Size([1, 2])],
    "namespaces": [types.SimpleNamespace(a=1), argparse.Namespace(b=2)],
    "objects": Settings(),
    "classes": [Settings, dict, torch.nn.Linear, torch.float32, torch.device("cpu")],
    "functions": [functools.partial(nothing, 3), nothing, len, "a".join],
    "module": torch.nn.Sequential(torch.nn.Linear(2, 2)),
    "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
    "sparse": torch.eye(2).to_sparse(),
    "huge": [10**4000, 2**2000, -(10**30), float("inf")],
    "exceptions": [ValueError("a"), KeyError("b")],
}


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_that_do_not_matter_do_not_matter(tmp_path, kind, protocol):
    args = arguments(note=OBJECTS[kind])
    content = {"model": STATE, "args": args, "hyper_parameters": OBJECTS[kind], "extra": {"deep": [OBJECTS[kind]]}}
    path = tmp_path / "c.pth"
    torch.save(content, path, pickle_protocol=protocol)
    checkpoint = read_checkpoint(path, recognises)
    assert_is(checkpoint.state, STATE)
    assert checkpoint.args["budget_attn"] == 0.7
    assert len(load_network(path).masked.blocks) == 2


def test_a_torchscript_archive_is_told_and_not_run(tmp_path):
    path = tmp_path / "c.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(CheckpointError, match=r"not a checkpoint but a TorchScript archive.*torch.jit.load"):
        read_checkpoint(path, recognises)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_pickled_module_is_told_and_not_run(tmp_path, legacy, nested):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    path = save(tmp_path / "c.pth", {"model": module} if nested else module, legacy=legacy)
    with pytest.raises(CheckpointError, match=r"holds a pickled module \(torch.nn.modules.container.Sequential\)"):
        read_checkpoint(path, recognises)


def test_suffixes_may_say_anything(tmp_path):
    as_torch, as_safetensors = tmp_path / "a.safetensors", tmp_path / "b.pth"
    save(as_torch, {"model": STATE})
    save_file(STATE, as_safetensors)
    for path in (as_torch, as_safetensors):
        assert_is(read_checkpoint(path, recognises).state, STATE)


def test_plain_pickles_are_told(tmp_path):
    path = tmp_path / "c.pth"
    path.write_bytes(pickle.dumps({"model": {"a": np.ones(2)}}))
    with pytest.raises(CheckpointError, match=r"a pickle that torch.save did not write"):
        read_checkpoint(path, recognises)
