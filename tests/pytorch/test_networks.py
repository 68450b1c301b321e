"""A trained module as a network: compiled again, exported and verified, with what it chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import slimc
from slimc import ir
from slimc.compiler.compile import Compiled
from slimc.compiler.load import load_network
from slimc.compiler.pipeline import compile_model, passes_for
from slimc.errors import OptionError, OutputError
from slimc.ir.interpret.model import trace
from slimc.models.system import Network
from slimc.pytorch import choices, from_torch, to_torch
from slimc.targets.target import find_target
from tests import gated, selecting
from tests.artefacts import OPTIONS, VECTORS
from tests.plain_networks import images_of, plain_network
from tests.pytorch.networks import images_for, loss_of


def trained(slim: Compiled) -> torch.nn.Module:
    """The module of `slim` after a step."""
    module = slim.to_torch().train()
    optimiser = torch.optim.SGD((p for p in module.parameters() if p.requires_grad), lr=1e-3)
    loss_of(module(images_for(module))).backward()  # type: ignore[arg-type]
    optimiser.step()
    return module


@pytest.mark.parametrize("vector", VECTORS)
def test_a_trained_module_is_exported_and_verified(vector, tmp_path):
    network = load_network(VECTORS[vector], OPTIONS.get(vector))
    slim = slimc.compile(network)
    module = trained(slim)
    found = slimc.from_torch(module, slim)
    assert found.origin is network.masked
    assert found.sha256 != network.sha256
    report = slimc.export(found, tmp_path / "m.onnx", target="cpu")
    assert report.comparison is not None
    assert report.comparison.passed
    assert slimc.verify(tmp_path / "m.onnx").passed
    images = images_for(module)  # type: ignore[arg-type]
    with torch.no_grad():
        expected = module.eval()(images).numpy()
    logits = trace(report.compiled.network.masked, images.numpy()).logits
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * expected.std())


@pytest.mark.parametrize("target", ["generic", "cpu", "sm90"])
@pytest.mark.parametrize("vector", VECTORS)
def test_it_compiles_again_to_what_it_was(vector, target):
    """Whatever passes have changed, passes may change again."""
    network = load_network(VECTORS[vector], OPTIONS.get(vector))
    model = ir.to_float64(slimc.compile(network).model)
    again = compile_model(from_torch(to_torch(model)), passes_for(find_target(target)))
    images = np.random.default_rng(0).standard_normal((2, 3, *model.image))
    np.testing.assert_allclose(trace(again, images).logits, trace(model, images).logits, rtol=0, atol=1e-9)


def test_a_module_says_all_there_is_to_know_of_a_plain_network(tmp_path: Path):
    module = slimc.compile(load_network(VECTORS["digits"])).to_torch()
    found = slimc.from_torch(module)
    assert (found.system.name, str(found.path)) == ("plain_vit", "module")
    report = slimc.export(found, tmp_path / "m.onnx")
    assert report.comparison is not None
    assert report.comparison.passed


@pytest.mark.parametrize("vector", ["deit", "gates"])
def test_networks_that_choose_need_the_one_that_was_compiled(vector):
    module = slimc.compile(load_network(VECTORS[vector], OPTIONS.get(vector))).to_torch()
    with pytest.raises(OptionError, match="needs what it was compiled from"):
        slimc.from_torch(module)


def test_several_outputs_are_verified_by_name(tmp_path: Path):
    model = plain_network(3, outputs=("features", "logits", "tokens"), pool="avg")
    model = ir.map_arrays(model, lambda array: array.astype(np.float32))
    found: Network = slimc.from_torch(to_torch(model))
    report = slimc.export(found, tmp_path / "m.onnx", batch_size=2)
    assert report.comparison is not None
    assert [difference.output for difference in report.comparison.outputs] == ["features", "logits", "tokens"]
    assert images_of(model).shape[1] == found.masked.embedding.channels


@pytest.mark.parametrize("variant", ["slim", "masked"])
@pytest.mark.parametrize("vector", selecting.VECTORS, ids=lambda vector: vector.name)
def test_the_patches_that_are_kept(vector, variant):
    network = load_network(vector.checkpoint, vector.options)
    model = network.masked if variant == "masked" else slimc.compile(network).model
    images = torch.from_numpy(vector.images)
    with torch.no_grad():
        found = choices(to_torch(model), images)
        expected = network.trace(network.pytorch("masked"), images)
    for kept, those, released in zip(found.kept, expected.kept, vector.kept, strict=True):
        assert torch.equal(kept, those)
        assert np.array_equal(np.sort(kept.numpy(), axis=1), released)
    assert expected.margins is not None
    torch.testing.assert_close(found.margins, expected.margins, rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(found.outputs["logits"].numpy(), vector.logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", gated.VECTORS)
def test_what_is_decided(name):
    released = gated.vector(name)
    images = torch.from_numpy(released.images)
    with torch.no_grad():
        found = choices(to_torch(released.searched.masked), images).usage
    expected = gated.observe(released.searched, released.images)[1]
    assert found is not None
    np.testing.assert_allclose(found.margin, expected.margin, rtol=1e-3, atol=1e-4)
    for block, one, other in zip(released.searched.masked.blocks, found.blocks, expected.blocks, strict=True):
        if block.gates is not None:
            assert np.array_equal(one.attention, other.attention)
            assert np.array_equal(one.mlp, other.mlp)
            assert np.array_equal(one.tokens, other.tokens)
            assert block.gates.heads is None or np.array_equal(one.heads, other.heads)


def test_an_output_that_cannot_be_written_is_said_in_front(tmp_path: Path):
    module = to_torch(load_network(VECTORS["digits"]).masked)
    with pytest.raises(OptionError, match=r"expected \.pt2"):
        slimc.export_program(module, tmp_path / "m.pt")
    with pytest.raises(OutputError, match="does not exist"):
        slimc.export_program(module, tmp_path / "none" / "m.pt2")
    with pytest.raises(OptionError, match="make no batch"):
        slimc.export_program(module, tmp_path / "m.pt2", batch_size=0)
    with pytest.raises(OptionError, match="no module that slimc made"):
        slimc.export_program(torch.nn.Linear(2, 2), tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_limits_stay_with_a_trained_module(tmp_path: Path):
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{i}.png")
    slim = slimc.compile(load_network(VECTORS["tokens"]), target="cpu", adaptive="capacity", data=folder)
    assert slim.limits is not None
    found = slimc.from_torch(trained(slim), slim)
    assert found.limits == slim.limits.to_json()
    for name in ("m.onnx", "m.safetensors"):
        report = slimc.export(found, tmp_path / name)
        assert report.comparison is not None
        assert report.comparison.passed
