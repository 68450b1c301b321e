"""timm's plain vision transformers: every entry point against timm itself in float64, masked and not, through every pass."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import slimc
from slimc import ir
from slimc.compiler.pipeline import check_passes, passes_for
from slimc.errors import CheckpointError, OptionError
from slimc.ir.interpret.model import trace
from slimc.ir.validate import validate
from slimc.models.system import Network
from slimc.targets.target import find_target
from tests.models.timm_networks import entry_points, images_of, masks_of, tiny

# What the front end does not know, by a part of what it says; everything else must be exact.
LEFT_OUT = {
    "is a ParallelThingsBlock": "attention and FFN side by side",
    "is a ParallelScalingBlock": "attention and FFN side by side",
    "is a DiffParallelScalingBlock": "attention and FFN side by side",
    "is a DiffAttention": "the difference of two softmaxes",
    "is a ResPostBlock": "norms behind the branches",
    "is a EvaBlockPostNorm": "norms behind the branches",
    "grouped-query attention": "heads that share keys and values",
}
TARGETS = (("generic", None), ("cpu", 1), ("sm89", None))


def outputs_of(network: ir.Model) -> tuple[str, ...]:
    pooled = network.classifier.rows or network.classifier.pool is not None
    return (
        "tokens",
        "blocks.0:nchw",
        *(["features"] if pooled else []),
        *(["logits"] if network.classifier.heads else []),
    )


def assert_same(actual: dict[str, Any], expected: dict[str, torch.Tensor], bound: float) -> None:
    for name, tensor in expected.items():
        values = tensor.detach().numpy()
        np.testing.assert_allclose(actual[name], values, rtol=0, atol=bound * values.std(), err_msg=name)


def load(module: nn.Module, name: str) -> Network:
    try:
        return slimc.load(module)
    except CheckpointError as error:
        if any(reason in str(error) for reason in LEFT_OUT):
            pytest.skip(f"{name}: {error}")
        raise


@pytest.mark.parametrize("name", entry_points())
def test_every_entry_point_is_exact_or_left_out_by_name(name):
    module: Any = tiny(name)
    network = load(module, name)
    validate(network.dense)
    images, names = images_of(module), outputs_of(network.dense)
    dense = ir.choose_outputs(network.dense, names)
    with torch.no_grad():
        assert network.read is not None
        expected = network.read(network.pytorch("dense"), images, names)
        torch.testing.assert_close(expected["tokens"], module.forward_features(images)[:, module.num_prefix_tokens :])
        if "logits" in names:
            torch.testing.assert_close(expected["logits"], module(images))
    assert_same(dict(trace(dense, images.numpy()).outputs), dict(expected), 1e-9)
    for target, threads in TARGETS:
        check_passes(dense, passes_for(find_target(target, threads=threads)), images.numpy())


@pytest.mark.parametrize("name", entry_points())
def test_every_entry_point_is_exact_under_random_masks(name):
    module = tiny(name)
    plain = load(module, name)
    masks = masks_of(plain.dense, np.random.default_rng(len(name)))
    network = slimc.mask(plain, masks)
    images, names = images_of(module), outputs_of(network.dense)
    masked = ir.choose_outputs(network.masked, names)
    with torch.no_grad():
        assert network.read is not None
        expected = network.read(network.pytorch("masked"), images, names)
    assert_same(dict(trace(masked, images.numpy()).outputs), dict(expected), 1e-9)
    for target, threads in TARGETS:
        check_passes(masked, passes_for(find_target(target, threads=threads)), images.numpy())


def test_the_families_that_are_left_out_are_these():
    left: dict[str, set[str]] = {}
    for name in entry_points():
        try:
            slimc.load(tiny(name))
        except CheckpointError as error:
            reason = next(reason for reason in LEFT_OUT if reason in str(error))
            left.setdefault(reason, set()).add(name)
    assert set(left) == set(LEFT_OUT)
    assert sum(map(len, left.values())) <= 16


SMALL = "vit_small_patch14_reg4_dinov2"


class Louder(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def hooked(module: Any) -> None:
    module.blocks[1].mlp.register_forward_hook(lambda *_: None)


def pre_hooked(module: Any) -> None:
    module.blocks[0].norm1.register_forward_pre_hook(lambda *_: None)


def overridden(module: Any) -> None:
    module.blocks[0].attn.forward = lambda x, **_: x


def subclassed(module: Any) -> None:
    module.blocks[0].mlp.fc2 = Louder(192, 48)


def with_adapter(module: Any) -> None:
    module.blocks[1].adapter = nn.Linear(48, 48)


def with_parameter(module: Any) -> None:
    module.blocks[1].attn.qkv.scale = nn.Parameter(torch.ones(1))


def parametrised(module: Any) -> None:
    nn.utils.parametrizations.weight_norm(module.blocks[0].mlp.fc1)


def with_activation(module: Any) -> None:
    module.blocks[0].mlp.act = nn.Tanh()


def wrapped(module: Any) -> None:
    module.blocks[0] = nn.Sequential(module.blocks[0])


def convolved(module: Any) -> None:
    module.patch_embed.proj = nn.Conv2d(3, 48, 14, 7)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (hooked, "blocks.1.mlp: has a forward hook"),
        (pre_hooked, "blocks.0.norm1: has a forward hook"),
        (overridden, "blocks.0.attn: has a forward of its own"),
        (subclassed, "blocks.0.mlp.fc2: is a tests.models.test_timm_vit.Louder"),
        (with_adapter, "blocks.1.adapter: is no part of a Block"),
        (with_parameter, "blocks.1.attn.qkv.scale: is no weight of a Linear"),
        (parametrised, "blocks.0.mlp.fc1: is a ParametrizedLinear|blocks.0.mlp.fc1: is a torch.nn.utils.parametrize"),
        (with_activation, "blocks.0.mlp.act: is a Tanh"),
        (wrapped, "blocks.0: is a Sequential"),
        (convolved, "patch_embed.proj: Conv2d.* does not cut"),
    ],
)
def test_what_stands_in_the_place_of_a_known_module_is_refused_by_name(change, place):
    module = tiny(SMALL)
    change(module)
    with pytest.raises(CheckpointError, match=place) as caught:
        slimc.load(module)
    assert "\n" not in str(caught.value).strip()


def test_a_module_of_another_family_is_refused_by_name():
    with pytest.raises(CheckpointError, match="is a Beit, which slimc does not know; expected VisionTransformer"):
        slimc.load(tiny("beit_base_patch16_224", img_size=(32, 32)))


def test_a_physically_pruned_network_comes_in_by_its_shapes():
    module: Any = tiny("vit_tiny_patch16_224")
    block = module.blocks[0]
    block.attn.num_heads, block.attn.attn_dim = 2, 24
    kept = np.r_[0:24]
    rows = torch.from_numpy(np.concatenate([kept, kept + 48, kept + 96]))
    for layer, outs, ins in ((block.attn.qkv, rows, None), (block.attn.proj, None, torch.arange(24))):
        if outs is not None:
            layer.weight, layer.bias = nn.Parameter(layer.weight[outs]), nn.Parameter(layer.bias[outs])
            layer.out_features = len(outs)
        if ins is not None:
            layer.weight, layer.in_features = nn.Parameter(layer.weight[:, ins]), len(ins)
    for layer, axis in ((block.mlp.fc1, 0), (block.mlp.fc2, 1)):
        layer.weight = nn.Parameter(layer.weight.narrow(axis, 0, 100))
    block.mlp.fc1.bias = nn.Parameter(block.mlp.fc1.bias[:100])
    network = slimc.load(module)
    images = images_of(module)
    assert len(network.dense.blocks[0].attention.heads) == 2  # type: ignore[union-attr]
    assert_same(dict(trace(network.dense, images.numpy()).outputs), {"logits": module(images)}, 1e-9)


def test_loading_leaves_the_module_as_it_was():
    module = tiny(SMALL).train()
    before = copy.deepcopy(module.state_dict())
    network = slimc.load(module)
    slimc.mask(network, masks_of(network.dense, np.random.default_rng(0)))
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not any(m._forward_hooks for m in module.modules())


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, "masks: there are none"),
        ({"blocks.7.heads": [1, 0, 1, 1]}, "this network has no blocks.7.heads; expected patches, blocks.0.heads"),
        ({"blocks.0.heads": [1, 0]}, r"blocks.0.heads: has the shape \[2\], expected \[4\]"),
        ({"blocks.0.hidden": np.full(192, 0.5)}, "blocks.0.hidden: has entries that are neither 0 nor 1"),
        ({"patches": np.ones((3, 6))}, r"patches: has the shape \[3, 6\], expected \[6\] or \[2, 6\]"),
        ({"attn_pool.heads": [1, 1, 1, 1]}, "this network has no attn_pool.heads"),
        ({"blocks.0.heads": ["a"]}, "neither 0 nor 1"),
    ],
)
def test_masks_that_cannot_be_used_are_refused_in_one_line(masks, message):
    with pytest.raises(OptionError, match=message):
        slimc.mask(slimc.load(tiny(SMALL)), masks)


@pytest.mark.parametrize("kind", ["qk", "channels"])
def test_queries_and_keys_behind_a_norm_are_not_masked(kind):
    network = slimc.load(tiny("vit_small_patch16_224", qk_norm=True))
    with pytest.raises(OptionError, match=f"blocks.0.{kind}: queries and keys have a norm"):
        slimc.mask(network, {f"blocks.0.{kind}": np.ones((4, 12))})


def test_patches_whose_keys_are_turned_with_their_bias_are_not_masked():
    network = slimc.load(tiny("vit_pe_spatial_tiny_patch16_512"))
    with pytest.raises(
        OptionError, match=re.escape("blocks.0.patches: its keys have a bias that is turned by position")
    ):
        slimc.mask(network, {"patches": [1, 1, 1, 0, 1, 1]})
