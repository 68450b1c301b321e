"""Patches stand in the order of their lifetimes, so that every cut is a prefix."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from slimc import ir
from slimc.compiler.pipeline import passes_for
from slimc.passes.order_tokens import OrderTokens
from slimc.passes.remove_dead_tokens import RemoveDeadTokens
from slimc.targets.target import find_target
from tests.networks import assert_same_interface, assert_same_meaning, branches, dense_networks, masked_networks, run

order = OrderTokens()
pipeline = passes_for(find_target("generic"))
before = pipeline[: pipeline.index(order)]


@given(masked_networks())
def test_every_cut_takes_a_prefix(network):
    ordered = run(network, *before, order)
    for block in ordered.blocks:
        if block.live is not None:
            np.testing.assert_array_equal(block.live, np.arange(len(block.live)))


@given(masked_networks())
def test_the_patches_are_the_same_ones(network):
    prepared = run(network, *before)
    old, new = prepared.embedding.patch.patches, order(prepared).embedding.patch.patches
    every = np.arange(network.grid[0] * network.grid[1])
    np.testing.assert_array_equal(np.sort(every if new is None else new), every if old is None else old)
    assert ir.block_rows(order(prepared)) == ir.block_rows(prepared)


@given(masked_networks())
def test_the_network_means_the_same(network):
    assert_same_meaning(network, run(network, *before, order))


@st.composite
def cut_networks(draw: st.DrawFn) -> ir.Model:
    """Networks with token masks from which any patches are cut in the first block."""
    network = draw(masked_networks(ored=False))
    rows = np.arange(ir.embedded_rows(network))
    stays = np.array([draw(st.booleans()) for _ in rows]) | (rows < network.prefix)
    blocks = []
    for i, block in enumerate(network.blocks):
        attention, mlp = branches(block)
        if i > 0 and attention.token_mask is not None:
            attention = replace(attention, token_mask=attention.token_mask[stays])
        if mlp.token_mask is not None:
            mlp = replace(mlp, token_mask=mlp.token_mask[stays])
        live = None if i or stays.all() else rows[stays]
        blocks.append(replace(block, attention=attention, mlp=mlp, live=live))
    return replace(network, blocks=tuple(blocks))


@given(cut_networks())
def test_token_masks_are_permuted_too(network):
    ordered = order(network)
    live = ordered.blocks[0].live
    assert live is None or (live == np.arange(len(live))).all()
    assert_same_meaning(network, ordered)


@given(masked_networks())
def test_the_interface_is_untouched_and_a_second_run_does_nothing(network):
    ordered = run(network, *before, order)
    assert_same_interface(network, ordered)
    assert order(ordered) is ordered


@given(dense_networks())
def test_patches_of_equal_lifetimes_are_left_as_they_are(network):
    assert order(network) is network
    cut = RemoveDeadTokens()(network)
    assert order(cut) is cut
