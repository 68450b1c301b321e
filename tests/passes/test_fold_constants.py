"""Constant branches go into the bias before them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimc import ir
from slimc.errors import PassError
from slimc.passes.fold_biases import FoldBiases
from slimc.passes.fold_constants import FoldConstants
from slimc.passes.fold_scales import FoldScales
from slimc.passes.remove_channels import RemoveMaskedChannels
from slimc.passes.remove_dead_tokens import RemoveDeadTokens
from slimc.passes.remove_empty import RemoveEmptyBranches
from slimc.passes.remove_hidden import RemoveMaskedHidden
from slimc.passes.remove_positions import RemoveMaskedPositions
from tests.networks import Geometry, assert_same_interface, assert_same_meaning, dense_network, masked_networks, run

fold = FoldConstants()
before = (
    RemoveMaskedChannels(),
    RemoveMaskedHidden(),
    FoldScales(),
    FoldBiases(),
    RemoveMaskedPositions(),
    RemoveEmptyBranches(),
    RemoveDeadTokens(),
    RemoveEmptyBranches(),
)
SMALL = Geometry(2, 2, 3, 6, 4, (2, 2), (2, 2), 1, 3, qkv_bias=True, pre_logits=False, residual_scale=1.0)


@st.composite
def networks_with_constants(draw: st.DrawFn) -> ir.Model:
    """Compiled networks of which further branches are made constants, or nothing."""
    network = run(draw(masked_networks()), *before)
    vectors = np.random.default_rng(draw(st.integers(0, 99))).standard_normal((len(network.blocks), 2, network.dim))
    blocks = []
    for block, (first, second) in zip(network.blocks, vectors, strict=True):
        attention = draw(st.sampled_from((block.attention, ir.Constant(first), None)))
        mlp = draw(st.sampled_from((block.mlp, ir.Constant(second), None)))
        blocks.append(replace(block, attention=attention, mlp=mlp))
    return replace(network, blocks=tuple(blocks))


@given(networks_with_constants())
def test_no_constant_is_left_and_nothing_else_changes_its_kind(network):
    for old, new in zip(network.blocks, fold(network).blocks, strict=True):
        for was, now in ((old.attention, new.attention), (old.mlp, new.mlp)):
            expected = None if isinstance(was, ir.Constant) else was
            assert type(now) is type(expected)


@given(networks_with_constants())
def test_the_network_means_the_same(network):
    assert_same_meaning(network, fold(network))


@given(networks_with_constants())
def test_the_interface_is_untouched_and_a_second_run_does_nothing(network):
    folded = fold(network)
    assert_same_interface(network, folded)
    assert fold(folded) is folded


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_a_scaled_branch_before_a_constant_is_refused_with_the_way_out(branch):
    network = dense_network(SMALL, 0)
    first = network.blocks[0] if branch == "mlp" else replace(network.blocks[0], mlp=None)
    first = replace(first, **{branch: replace(getattr(first, branch), residual_scale=0.5)})
    second = replace(network.blocks[1], attention=ir.Constant(np.ones(6)))
    with pytest.raises(PassError, match=r"a branch has a scale \(run FoldScales first\)"):
        fold(replace(network, blocks=(first, second)))
