"""Modules are trained: gradients, what has none, and the IR behind a step."""

from __future__ import annotations

import numpy as np
import onnx_ir as oir
import pytest
import torch
from torch import nn

import slimc
from slimc import ir
from slimc.compiler.load import load_network
from slimc.emit.model import emit
from slimc.errors import OptionError
from slimc.ir.interpret.model import trace
from slimc.pytorch import VisionTransformer, from_torch, to_torch
from slimc.pytorch.attention import Attention
from slimc.pytorch.block import Block
from slimc.pytorch.mlp import Mlp
from slimc.targets.target import find_target
from tests.artefacts import OPTIONS, VECTORS
from tests.plain_networks import plain_network
from tests.pytorch.comparing import assert_same, outputs_of
from tests.pytorch.networks import (
    NETWORKS,
    deciding_network,
    everything,
    images_for,
    loss_of,
    searched,
    selecting_network,
)

# How many entries of every parameter are checked: all of three networks, few of a large one, else 20.
ENTRIES = {"everything": None, "searched": None, "absorbed": None, "split": 2}


def test_the_networks_have_what_they_say():
    blocks = {name: blocks_of(make()) for name, make in NETWORKS.items()}
    attentions = {
        name: [block.attn for block in each if isinstance(block.attn, Attention)] for name, each in blocks.items()
    }
    assert any(attention.absorbed for attention in attentions["absorbed"])
    assert any(attention.ghost_score for attention in attentions["searched"])
    assert any(len(attention.groups) > 1 for attention in attentions["searched"])
    assert {attention.one_product for each in attentions.values() for attention in each} == {True, False}
    assert any(not block.live.all for block in blocks["searched"])
    assert any(isinstance(block.mlp, Mlp) and not block.mlp.rows.all for block in blocks["searched"])
    assert any(block.gates is not None and block.gates.gathers for block in blocks["limited"])
    assert {block.select.drop for name in ("selecting", "dropping") for block in blocks[name] if block.select} == {
        True,
        False,
    }


def blocks_of(module: VisionTransformer) -> list[Block]:
    return [block for block in module.blocks if isinstance(block, Block)]


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_finite_differences(name):
    module = NETWORKS[name]()
    images = images_for(module)
    loss_of(module(images)).backward()
    random = np.random.default_rng(0)
    for key, parameter in module.named_parameters():
        if key.endswith("attention.w"):  # random features, which the research code does not train either
            continue
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert (parameter.grad is not None) == parameter.requires_grad, key
        for position in random.permutation(parameter.numel())[: ENTRIES.get(name, 20)]:
            expected = difference(module, images, parameter.data.view(-1), int(position))
            found = gradient.view(-1)[position].item()
            assert abs(found - expected) <= 1e-5 * max(1.0, abs(expected)), f"{key}[{position}]"


def difference(
    module: nn.Module, images: torch.Tensor, values: torch.Tensor, position: int, step: float = 1e-6
) -> float:
    """The derivative of the loss by one entry of a parameter, by a central difference."""
    losses, before = [], values[position].item()
    with torch.no_grad():
        for change in (step, -step):
            values[position] = before + change
            losses.append(loss_of(module(images)).item())
    values[position] = before
    return (losses[0] - losses[1]) / (2 * step)


def test_what_only_decides_is_not_trained():
    assert untrained(selecting_network()) == {"select"}
    assert untrained(deciding_network()) == {"gates"}
    assert untrained(everything()) == untrained(searched("cpu")) == set()
    vector = load_network(VECTORS["t2t"]).masked
    assert untrained(to_torch(vector)) == {
        "gates",
        "patch_embed.stem.split1.attention.w",
        "patch_embed.stem.split2.attention.w",
    }


def untrained(module: nn.Module) -> set[str]:
    """Parameters that are not trained; "gates" and "select" for those that belong to such."""
    names = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {next((part for part in ("gates", "select") if f".{part}." in name), name) for name in names}


def test_what_no_output_needs_is_not_trained():
    model = ir.choose_outputs(plain_network(0, depth=3), ["blocks.1"])
    module = to_torch(model)
    assert untrained(module) == {name for name, _ in module.named_parameters() if name.startswith(("norm.", "head."))}
    loss_of(module(images_for(module))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in module.parameters())
    assert_same(from_torch(module), model)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_model_of_a_trained_module_is_what_it_computes(name):
    module = NETWORKS[name]()
    images = images_for(module)
    before = from_torch(module)
    optimiser = torch.optim.AdamW((p for p in module.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        loss_of(module(images)).backward()
        optimiser.step()
    after = from_torch(module)
    expected = trace(after, images.numpy()).outputs
    for key, values in outputs_of(module, images.numpy()).items():
        spread = max(1.0, float(np.abs(values).max()))
        np.testing.assert_allclose(values, expected[key], rtol=0, atol=1e-9 * spread)
    changed = [not np.array_equal(a, b) for a, b in zip(ir.arrays(before), ir.arrays(after), strict=True) if a.size]
    assert sum(changed) > len(changed) / 2


@pytest.mark.parametrize("target", ["generic", "cpu", "sm90"])
@pytest.mark.parametrize("vector", VECTORS)
def test_the_same_bytes_are_emitted(vector, target):
    network = load_network(VECTORS[vector], OPTIONS.get(vector))
    model = slimc.compile(network, target=target).model
    found = from_torch(to_torch(model, find_target(target)))
    assert_same(found, model)
    first, second = (oir.to_proto(emit(each, find_target(target))).SerializeToString() for each in (model, found))
    assert first == second


@pytest.mark.parametrize("wrap", [lambda module: torch.compile(module, backend="eager"), nn.DataParallel])
def test_wrapped_modules_are_unwrapped(wrap):
    assert_same(from_torch(wrap(searched("generic"))), from_torch(searched("generic")))


def test_other_precisions_come_back_in_the_models_own():
    module = to_torch(load_network(VECTORS["digits"]).masked)
    expected = from_torch(module)
    assert_same(from_torch(module.double()), expected)
    narrow = from_torch(module.to(torch.bfloat16))
    assert {array.dtype for array in ir.arrays(narrow)} == {np.dtype(np.float32)}


def test_other_modules_are_refused():
    with pytest.raises(OptionError, match="Linear: no module that slimc made"):
        from_torch(nn.Linear(2, 2))


def test_names_are_the_checkpoints():
    network = load_network(VECTORS["digits"])
    checkpoint = set(network.pytorch("dense").state_dict())
    found = set(to_torch(network.masked).state_dict())
    own = {"pos_embed.prefix", "pos_embed.patches"}
    assert found - own == {name for name in checkpoint if "zeta" not in name and name != "pos_embed"}
