"""Masked head channels are sliced away."""

import numpy as np
import pytest
from hypothesis import given

from slimc import ir
from slimc.errors import PassError
from slimc.passes.remove_channels import RemoveMaskedChannels
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

remove = RemoveMaskedChannels()


@given(masked_networks())
def test_every_head_keeps_exactly_its_unmasked_channels(network):
    for before, after in zip(network.blocks, remove(network).blocks, strict=True):
        for masked, slim in zip(branches(before)[0].heads, branches(after)[0].heads, strict=True):
            channels = kept(masked.mask, len(masked.query.weight))
            np.testing.assert_array_equal(slim.query.weight, masked.query.weight[channels])
            np.testing.assert_array_equal(slim.key.weight, masked.key.weight[channels])
            np.testing.assert_array_equal(slim.value.weight, masked.value.weight[channels])
            np.testing.assert_array_equal(slim.output, masked.output[:, channels])
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
def test_a_network_without_head_masks_is_returned_as_it_is(network):
    assert remove(network) is network


def has_a_soft_head(network: ir.Model) -> bool:
    return any(is_soft(head.mask) for block in network.blocks for head in branches(block)[0].heads)


@given(soft_networks().filter(has_a_soft_head))
def test_a_soft_mask_is_refused_with_the_way_out(network):
    with pytest.raises(PassError, match=r"RemoveMaskedChannels: a head mask is not binary \(run FoldScales first\)"):
        remove(network)
