"""Training arguments are plain values, in whichever guise and under whichever name a training script saved them."""

import decimal
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slimc.compiler.load import load_network
from slimc.files.checkpoint import Checkpoint, read_checkpoint
from slimc.models.systems import recognises
from tests.checkpoints import arguments, save, state_dict

STATE = state_dict()


class Config(dict[str, Any]):
    """As EasyDict, addict and yacs have them."""


def read(path: Path, content: object) -> Checkpoint:
    return read_checkpoint(save(path / "c.pth", content), recognises)


NUMBERS = {
    "float": 0.7,
    "text": "0.7",
    "NumPy float64": np.float64(0.7),
    "NumPy float32": np.float32(0.7),
    "NumPy float16": np.float16(0.7),
    "big endian": np.array(0.7, ">f8"),
    "array of no axes": np.array(0.7),
    "tensor": torch.tensor(0.7),
    "half tensor": torch.tensor(0.7, dtype=torch.bfloat16),
    "double tensor": torch.tensor(0.7, dtype=torch.float64),
    "parameter": torch.nn.Parameter(torch.tensor(0.7)),
    "decimal": decimal.Decimal("0.7"),
}


@pytest.mark.parametrize("guise", NUMBERS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_numbers_in_every_guise(tmp_path, guise, legacy):
    content = {"model": STATE, "args": arguments(attn=NUMBERS[guise])}
    checkpoint = read_checkpoint(save(tmp_path / "c.pth", content, legacy=legacy), recognises)
    assert checkpoint.args["budget_attn"] == 0.7
    assert load_network(checkpoint.path).settings["budgets"]["attn"] == 0.7


def test_other_plain_values(tmp_path):
    values = {
        "integers": [np.int64(3), torch.tensor(3), "3", np.uint8(3)],
        "booleans": [np.bool_(True), torch.tensor(True), "True", "true"],
        "arrays": [np.array([3, 6]), torch.tensor([3, 6]), torch.Size([3, 6]), (3, np.int8(6))],
        "text": ["1_000", "0x10", "deit", "", "1.2.3", np.str_("deit")],
        "nothing": [None, "None"],
        "nested": {"a": types.SimpleNamespace(b=np.int64(1))},
    }
    assert read(tmp_path, {"model": STATE, "args": values}).args == {
        "integers": [3] * 4,
        "booleans": [True] * 4,
        "arrays": [[3, 6]] * 4,
        "text": ["1_000", "0x10", "deit", "", "1.2.3", "deit"],
        "nothing": [None] * 2,
        "nested": {"a": {"b": 1}},
    }


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "args": ({"args": arguments(), "config": {"budget_attn": 0.1}}, "args"),
    "dict": ({"args": vars(arguments())}, "args"),
    "SimpleNamespace": ({"args": types.SimpleNamespace(**vars(arguments()))}, "args"),
    "a dict's subclass": ({"config": Config(vars(arguments()))}, "config"),
    "Lightning": ({"hyper_parameters": vars(arguments())}, "hyper_parameters"),
    "Lightning with args": ({"hyper_parameters": {"args": arguments(), "lr": 1}}, "hyper_parameters.args"),
    "config": ({"config": vars(arguments())}, "config"),
    "cfg": ({"cfg": vars(arguments()), "args": "python train.py"}, "cfg"),
    "hparams": ({"hparams": vars(arguments()), "args": None}, "hparams"),
    "opt": ({"opt": arguments()}, "opt"),
}


@pytest.mark.parametrize("layout", ARGUMENTS)
def test_arguments_under_any_name(tmp_path, layout):
    others, name = ARGUMENTS[layout]
    checkpoint = read(tmp_path, {"model": STATE, **others})
    assert (checkpoint.args["budget_attn"], checkpoint.args_from) == (0.7, name)


def test_arguments_beside_nested_weights(tmp_path):
    checkpoint = read(tmp_path, {"run": {"model": STATE, "args": arguments()}, "epoch": 3})
    assert (checkpoint.args["budget_attn"], checkpoint.args_from) == (0.7, "args")
