"""Scales and channel masks go into the weights beside them."""

from dataclasses import replace

from hypothesis import given

from slimc.passes.fold_scales import FoldScales
from tests.networks import (
    assert_same_interface,
    assert_same_meaning,
    branches,
    dense_networks,
    masked_networks,
    soft_networks,
)

fold = FoldScales()


@given(soft_networks())
def test_no_scale_and_no_channel_mask_is_left_and_shapes_stay(network):
    folded = fold(network)
    assert folded.classifier.scale == 1.0
    for before, after in zip(network.blocks, folded.blocks, strict=True):
        attention, mlp = branches(after)
        assert (attention.scale, attention.residual_scale, mlp.residual_scale, mlp.mask) == (1.0, 1.0, 1.0, None)
        for old, new in zip(branches(before)[0].heads, attention.heads, strict=True):
            assert new.mask is None
            assert new.query.weight.shape == old.query.weight.shape
            assert new.output.shape == old.output.shape


@given(soft_networks())
def test_soft_masks_mean_the_same(network):
    assert_same_meaning(network, fold(network))


@given(masked_networks())
def test_binary_masks_and_masked_tokens_mean_the_same(network):
    assert_same_meaning(network, fold(network))


@given(soft_networks())
def test_the_interface_is_untouched_and_a_second_run_does_nothing(network):
    folded = fold(network)
    assert_same_interface(network, folded)
    assert fold(folded) is folded


@given(dense_networks())
def test_a_network_without_scales_is_returned_as_it_is(network):
    blocks = []
    for block in network.blocks:
        attention, mlp = branches(block)
        plain = replace(attention, scale=1.0, residual_scale=1.0)
        blocks.append(replace(block, attention=plain, mlp=replace(mlp, residual_scale=1.0)))
    network = replace(network, blocks=tuple(blocks), classifier=replace(network.classifier, scale=1.0))
    assert fold(network) is network
