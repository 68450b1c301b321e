"""The passes together: exact, in an order that holds, and with a defect named."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimc import ir
from slimc.compiler.pipeline import check_passes, compile_model, passes_for
from slimc.errors import PassError, ValidationError
from slimc.ir.interpret.model import interpret
from slimc.passes.fold_biases import FoldBiases
from slimc.passes.fold_scales import FoldScales
from slimc.passes.remove_channels import RemoveMaskedChannels
from slimc.passes.remove_positions import RemoveMaskedPositions
from slimc.targets.target import TARGETS, find_target
from tests.networks import (
    Geometry,
    assert_same_interface,
    assert_same_meaning,
    branches,
    dense_network,
    images_for,
    masked_networks,
)

SMALL = Geometry(2, 2, 3, 6, 4, (2, 2), (2, 2), 1, 3, qkv_bias=True, pre_logits=False, residual_scale=1.0)
targets = st.sampled_from(TARGETS).map(find_target)


@settings(max_examples=80)
@given(masked_networks(ored=True), targets)
def test_a_searched_network_means_the_same(network, target):
    assert_same_meaning(network, compile_model(network, passes_for(target)))


@settings(max_examples=80)
@given(masked_networks(ored=False), targets)
def test_a_network_with_any_masks_means_the_same(network, target):
    assert_same_meaning(network, compile_model(network, passes_for(target)))


@given(masked_networks(), targets)
def test_the_interface_is_untouched_and_a_second_run_returns_the_same_object(network, target):
    slim = compile_model(network, passes_for(target))
    assert_same_interface(network, slim)
    again = compile_model(slim, passes_for(target))
    if target.residual_in_product:  # the biases that FoldOutputBiases makes are FoldBiases' to fold
        assert_same_meaning(slim, again)
    else:
        assert again is slim


@given(masked_networks())
def test_no_mask_no_scale_and_no_constant_is_left(network):
    slim = compile_model(network, passes_for(find_target("generic")))
    assert slim.classifier.scale == 1.0
    for block in slim.blocks:
        if isinstance(block.attention, ir.Attention):
            assert block.attention.token_mask is None
            assert all(head.mask is None for head in block.attention.heads)
            assert (block.attention.scale, block.attention.residual_scale) == (1.0, 1.0)
        if isinstance(block.mlp, ir.Mlp):
            assert (block.mlp.mask, block.mlp.token_mask, block.mlp.residual_scale) == (None, None, 1.0)
        assert not isinstance(block.attention, ir.Constant)
        assert not isinstance(block.mlp, ir.Constant)


@given(masked_networks())
def test_weights_keep_their_type(network):
    """Checkpoints are float32, and folding must not widen them."""
    narrow = ir.map_arrays(network, lambda array: array.astype(np.float32))
    slim = compile_model(narrow, passes_for(find_target("generic")))
    assert {array.dtype for array in ir.arrays(slim)} == {np.dtype(np.float32)}


@given(masked_networks())
def test_every_pass_is_checked_by_name(network):
    passes = passes_for(find_target("generic"))
    errors = check_passes(network, passes, images_for(network))
    assert set(errors) == {type(step).__name__ for step in passes}
    assert max(errors.values()) <= 1e-9


def test_passes_that_need_others_refuse_to_run_before_them():
    network = dense_network(SMALL, 0)
    attention, mlp = branches(network.blocks[0])
    heads = tuple(replace(head, mask=np.array([1.0, 0.0, 1.0])) for head in attention.heads)
    masked = replace(attention, heads=heads, token_mask=np.array([1.0, 1.0, 0.0, 0.0, 1.0]))
    network = replace(network, blocks=(replace(network.blocks[0], attention=masked, mlp=mlp), network.blocks[1]))
    with pytest.raises(PassError, match="RemoveMaskedChannels or FoldScales first"):
        compile_model(network, (FoldBiases(), RemoveMaskedChannels()))
    for last in ((FoldBiases(), RemoveMaskedPositions()), (RemoveMaskedPositions(), FoldBiases())):
        compile_model(network, (RemoveMaskedChannels(), FoldScales(), *last))


@dataclass(frozen=True)
class LoseABias:
    """A pass with a defect: it changes what the model means."""

    def __call__(self, model: ir.Model) -> ir.Model:
        return replace(model, embedding=replace(model.embedding, prefix_position=None))


@dataclass(frozen=True)
class TearABlock:
    """A pass with a defect: it makes a model that contradicts itself."""

    def __call__(self, model: ir.Model) -> ir.Model:
        return replace(model, blocks=(replace(model.blocks[0], live=np.array([99])), *model.blocks[1:]))


def test_a_pass_that_changes_the_meaning_is_named():
    network = dense_network(SMALL, 0)
    with pytest.raises(PassError, match="LoseABias: changed the logits by"):
        check_passes(network, (FoldScales(), LoseABias()), images_for(network))


def test_a_pass_that_breaks_the_model_is_named():
    with pytest.raises(PassError, match=r"TearABlock: left a model that contradicts itself: blocks.0.live: indices"):
        compile_model(dense_network(SMALL, 0), (FoldScales(), TearABlock()))


def test_a_model_that_was_broken_before_any_pass_is_blamed_on_none():
    with pytest.raises(ValidationError, match=r"blocks.0.live: indices outside the 5 rows"):
        compile_model(TearABlock()(dense_network(SMALL, 0)), (FoldScales(),))


def test_a_pass_that_makes_logits_nan_is_not_passed():
    @dataclass(frozen=True)
    class Poison:
        def __call__(self, model: ir.Model) -> ir.Model:
            return replace(model, classifier=replace(model.classifier, scale=float("nan")))

    network = dense_network(SMALL, 0)
    assert np.isfinite(interpret(network, images_for(network))).all()
    with pytest.raises(PassError, match="Poison: changed the logits by nan"):
        check_passes(network, (Poison(),), images_for(network))
