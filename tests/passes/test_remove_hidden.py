"""Masked FFN channels are sliced away."""

import numpy as np
import pytest
from hypothesis import given

from slimc import ir
from slimc.errors import PassError
from slimc.passes.remove_hidden import RemoveMaskedHidden
from tests.networks import (
    assert_same_interface,
    assert_same_meaning,
    branches,
    dense_networks,
    is_soft,
    kept,
    masked_networks,
    soft_networks,
)

remove = RemoveMaskedHidden()


@given(masked_networks())
def test_every_ffn_keeps_exactly_its_unmasked_channels(network):
    for before, after in zip(network.blocks, remove(network).blocks, strict=True):
        masked, slim = branches(before)[1], branches(after)[1]
        channels = kept(masked.mask, len(masked.up.weight))
        np.testing.assert_array_equal(slim.up.weight, masked.up.weight[channels])
        np.testing.assert_array_equal(slim.up.bias, np.asarray(masked.up.bias)[channels])
        np.testing.assert_array_equal(slim.down.weight, masked.down.weight[:, channels])
        assert slim.mask is None


@given(masked_networks())
def test_the_network_means_the_same(network):
    assert_same_meaning(network, remove(network))


@given(masked_networks())
def test_the_interface_is_untouched_and_a_second_run_does_nothing(network):
    slim = remove(network)
    assert_same_interface(network, slim)
    assert remove(slim) is slim


@given(dense_networks())
def test_a_network_without_ffn_masks_is_returned_as_it_is(network):
    assert remove(network) is network


def has_a_soft_ffn(network: ir.Model) -> bool:
    return any(is_soft(branches(block)[1].mask) for block in network.blocks)


@given(soft_networks().filter(has_a_soft_ffn))
def test_a_soft_mask_is_refused_with_the_way_out(network):
    with pytest.raises(PassError, match=r"RemoveMaskedHidden: an FFN mask is not binary \(run FoldScales first\)"):
        remove(network)
