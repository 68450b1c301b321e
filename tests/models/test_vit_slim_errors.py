"""What a ViT-Slim checkpoint must have, and what its zetas must look like."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from slimc.compiler.load import load_network
from slimc.errors import BudgetError, CheckpointError, OptionError
from tests.checkpoints import Recipe, arguments, save, state_dict


def load(tmp_path: Path, state: dict[str, torch.Tensor], args: argparse.Namespace | None = None) -> None:
    content = {"model": state, "args": arguments() if args is None else args}
    load_network(save(tmp_path / "bad.pth", content), {})


@pytest.mark.parametrize("key", sorted(state_dict()))
def test_a_missing_key(tmp_path, key):
    state = state_dict()
    del state[key]
    without_a_bias = key.endswith("attn.qkv.bias")
    with pytest.raises(CheckpointError, match=r"bad.pth: (the state dict has no|unexpected)") as caught:
        load(tmp_path, state)
    assert without_a_bias or key in str(caught.value)


@pytest.mark.parametrize("key", sorted(state_dict()))
def test_a_wrong_shape(tmp_path, key):
    state = state_dict()
    axis = 1 if key == "patch_embed.proj.weight" else -1  # patches may be oblong, pixels have three channels
    state[key] = torch.cat([state[key], state[key]], axis)
    with pytest.raises((CheckpointError, OptionError)) as caught:
        load(tmp_path, state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 4), (1, 1, 3, 1, 4, 1), (1, 2, 3, 1, 4), (1, 1, 0, 1, 4), (1, 1, 3, 1, 5)])
def test_a_zeta_of_a_wrong_shape(tmp_path, shape):
    state = state_dict() | {f"blocks.{layer}.attn.zeta": torch.ones(shape) for layer in range(2)}
    with pytest.raises(CheckpointError, match=r"bad.pth: blocks.0.attn.zeta has"):
        load(tmp_path, state)


def test_zetas_that_differ_between_layers(tmp_path):
    state = state_dict() | {"blocks.1.attn.zeta": torch.ones(1, 1, 3, 1, 1)}
    with pytest.raises(CheckpointError, match=r"blocks.1.attn.zeta has the shape .*, expected \[1, 1, 3, 1, 4\]"):
        load(tmp_path, state)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["blocks.1.mlp.fc1.weight", "blocks.0.attn.zeta", "norm.bias"])
def test_weights_that_are_no_numbers(tmp_path, key, number):
    state = state_dict()
    state[key].view(-1)[0] = number
    with pytest.raises(CheckpointError, match=rf"bad.pth: {key} has NaN or Inf among its weights"):
        load(tmp_path, state)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_weights_that_are_not_floating_point(tmp_path, dtype):
    state = state_dict()
    state["head.weight"] = state["head.weight"].to(dtype)
    with pytest.raises(CheckpointError, match=r"head.weight has the type torch\.\w+, expected floating-point weights"):
        load(tmp_path, state)


def test_a_weight_that_belongs_to_another_network(tmp_path):
    with pytest.raises(CheckpointError, match=r"unexpected blocks.0.ls1.gamma in the state dict"):
        load(tmp_path, state_dict() | {"blocks.0.ls1.gamma": torch.ones(12)})


def test_a_layer_that_is_missing(tmp_path):
    state = {key: value for key, value in state_dict(Recipe(depth=3)).items() if not key.startswith("blocks.1.")}
    with pytest.raises(CheckpointError, match=r"has blocks.2 but no blocks.1"):
        load(tmp_path, state)


def test_a_number_of_heads_that_contradicts_the_zetas(tmp_path):
    with pytest.raises(OptionError, match="--num-heads: 4 contradicts the checkpoint, whose zetas have 3 heads"):
        load_network(save(tmp_path / "c.pth", {"model": state_dict(), "args": arguments()}), {"num_heads": 4})


def test_a_single_zeta_needs_to_be_told_its_heads(tmp_path):
    state = state_dict(Recipe(zeta="uniform", dim=6, heads=6))
    file = save(tmp_path / "one.pth", {"model": state, "args": arguments()})
    as_heads = load_network(file, {"num_heads": 6})
    as_one = load_network(file, {})
    counts = [len(m.masked.blocks[0].attention.heads) for m in (as_heads, as_one)]  # type: ignore[union-attr]
    assert counts == [6, 1]


@pytest.mark.parametrize("budget", [0, 0.0, 1.2, -1, float("nan"), "half", None, True, [0.7]])
def test_a_budget_in_the_file_that_is_none(tmp_path, budget):
    with pytest.raises(BudgetError, match=r"args.budget_mlp: .* is not a budget|search-stage checkpoint"):
        load(tmp_path, state_dict(), arguments(mlp=budget))
