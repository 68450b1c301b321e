"""Key, value, patch and prefix biases need no operation of their own."""

from dataclasses import replace

import pytest
from hypothesis import given

from slimc import ir
from slimc.errors import PassError
from slimc.passes.fold_biases import FoldBiases
from slimc.passes.fold_scales import FoldScales
from slimc.passes.remove_channels import RemoveMaskedChannels
from tests.networks import (
    Geometry,
    assert_same_interface,
    assert_same_meaning,
    branches,
    dense_network,
    masked_networks,
    soft_networks,
)

fold, remove = FoldBiases(), RemoveMaskedChannels()
SMALL = Geometry(1, 2, 3, 6, 4, (2, 2), (2, 2), 1, 3, qkv_bias=True, pre_logits=False, residual_scale=1.0)


@given(masked_networks())
def test_only_query_and_output_biases_are_left(network):
    folded = fold(remove(network))
    assert folded.embedding.patch.bias is None
    assert folded.embedding.prefix_position is None
    for block in folded.blocks:
        for head in branches(block)[0].heads:
            assert head.key.bias is None
            assert head.value.bias is None


@given(masked_networks())
def test_the_network_means_the_same_with_masked_tokens_among_the_keys(network):
    slim = remove(network)
    assert_same_meaning(network, fold(slim))


@given(soft_networks())
def test_soft_heads_mean_the_same_once_their_masks_are_folded(network):
    assert_same_meaning(network, fold(FoldScales()(network)))


@given(masked_networks())
def test_the_interface_is_untouched_and_a_second_run_does_nothing(network):
    folded = fold(remove(network))
    assert_same_interface(network, folded)
    assert fold(folded) is folded


def test_an_output_bias_is_made_and_a_patch_bias_without_positions_stays():
    network = dense_network(SMALL, 0)
    attention, _ = branches(network.blocks[0])
    bare = replace(
        network,
        embedding=replace(network.embedding, prefix_position=None, patch_position=None),
        blocks=(replace(network.blocks[0], attention=replace(attention, output_bias=None)),),
    )
    folded = fold(bare)
    assert folded.embedding.patch_position is None
    assert folded.embedding.patch.bias is not None
    assert branches(folded.blocks[0])[0].output_bias is not None
    assert_same_meaning(bare, folded)


def test_a_masked_head_is_refused_with_the_way_out():
    network = dense_network(SMALL, 0)
    attention, _ = branches(network.blocks[0])
    heads = tuple(replace(head, mask=head.output[0]) for head in attention.heads)
    block: ir.Block = replace(network.blocks[0], attention=replace(attention, heads=heads))
    with pytest.raises(PassError, match=r"FoldBiases: a head still has a mask.*RemoveMaskedChannels or FoldScales"):
        fold(replace(network, blocks=(block,)))
