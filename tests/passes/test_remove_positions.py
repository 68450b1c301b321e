"""Masked positions leave attention and FFN, and stay in the softmax's denominator as ghosts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from slimc import ir
from slimc.errors import PassError
from slimc.passes.fold_biases import FoldBiases
from slimc.passes.remove_channels import RemoveMaskedChannels
from slimc.passes.remove_positions import RemoveMaskedPositions
from tests.networks import (
    Geometry,
    assert_same_interface,
    assert_same_meaning,
    branches,
    dense_network,
    dense_networks,
    kept,
    masked_networks,
    run,
)

remove = RemoveMaskedPositions()
before = (RemoveMaskedChannels(), FoldBiases())
SMALL = Geometry(1, 2, 3, 6, 4, (2, 2), (2, 2), 1, 3, qkv_bias=True, pre_logits=False, residual_scale=1.0)


@given(masked_networks())
def test_rows_are_the_kept_positions_and_ghosts_count_the_others(network):
    slim = remove(run(network, *before))
    tokens = ir.embedded_rows(network)
    for masked, block in zip(network.blocks, slim.blocks, strict=True):
        (attention_before, mlp_before), (attention, mlp) = branches(masked), branches(block)
        seen, computed = kept(attention_before.token_mask, tokens), kept(mlp_before.token_mask, tokens)
        np.testing.assert_array_equal(rows_of(attention.rows, tokens), seen)
        np.testing.assert_array_equal(rows_of(mlp.rows, tokens), computed)
        assert attention.ghosts == tokens - len(seen)
        assert attention.token_mask is None
        assert mlp.token_mask is None


def rows_of(rows: ir.IndexArray | None, tokens: int) -> ir.IndexArray:
    return np.arange(tokens) if rows is None else rows


@given(masked_networks(ored=True))
def test_a_patch_that_stays_gone_means_the_same(network):
    assert_same_meaning(network, run(network, *before, remove))


@given(masked_networks(ored=False))
def test_any_mask_on_either_branch_means_the_same(network):
    assert_same_meaning(network, run(network, *before, remove))


@given(masked_networks())
def test_the_interface_is_untouched_and_a_second_run_does_nothing(network):
    slim = run(network, *before, remove)
    assert_same_interface(network, slim)
    assert remove(slim) is slim


@given(dense_networks())
def test_a_network_without_token_masks_is_returned_as_it_is(network):
    assert remove(network) is network


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_a_soft_mask_is_refused(branch):
    network = FoldBiases()(dense_network(SMALL, 0))
    masked = replace(getattr(network.blocks[0], branch), token_mask=np.array([1.0, 0.5, 0.0, 1.0, 1.0]))
    with pytest.raises(PassError, match="RemoveMaskedPositions: a token mask is not binary"):
        remove(replace(network, blocks=(replace(network.blocks[0], **{branch: masked}),)))


@given(masked_networks())
def test_keys_and_values_may_have_biases(network):
    assert_same_meaning(network, run(network, RemoveMaskedChannels(), remove, FoldBiases()))
