"""Rows of the stream end where their last reader is."""

from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from slimc import ir
from slimc.ir.interpret.embedding import embed
from slimc.ir.interpret.linear import Float64
from slimc.ir.interpret.model import run_block
from slimc.ir.interpret.readout import classify
from slimc.passes.fold_biases import FoldBiases
from slimc.passes.remove_channels import RemoveMaskedChannels
from slimc.passes.remove_dead_tokens import RemoveDeadTokens
from slimc.passes.remove_empty import RemoveEmptyBranches
from slimc.passes.remove_hidden import RemoveMaskedHidden
from slimc.passes.remove_positions import RemoveMaskedPositions
from tests.networks import (
    Geometry,
    assert_same_interface,
    assert_same_meaning,
    dense_network,
    images_for,
    masked_networks,
    run,
)

remove = RemoveDeadTokens()
ROUNDING = 1e-12
before = (
    RemoveMaskedChannels(),
    RemoveMaskedHidden(),
    FoldBiases(),
    RemoveMaskedPositions(),
    RemoveEmptyBranches(),
)


def influential_rows(network: ir.Model) -> Iterator[int]:
    """Rows of the stream before every block, and after the last, that change a logit when they change.

    Found by trying: each row is moved, and the rest of the network is run.
    """
    images = images_for(network, 1)
    moves = np.random.default_rng(0).standard_normal((2, network.dim))
    x = embed(network.embedding, images)
    for start in range(len(network.blocks) + 1):
        unmoved = _rest(network, start, x)
        count = 0
        for row in range(x.shape[1]):
            moved = np.concatenate([x, x])
            moved[:, row] += moves
            count += bool(np.abs(_rest(network, start, moved) - unmoved).max() > ROUNDING)
        yield count
        if start < len(network.blocks):
            x = run_block(network.blocks[start], x)


def _rest(network: ir.Model, start: int, x: Float64) -> Float64:
    for block in network.blocks[start:]:
        x = run_block(block, x)
    return classify(network.classifier, x)


@given(masked_networks())
def test_exactly_the_rows_that_change_a_logit_are_left(network):
    prepared = run(network, *before)
    rows = ir.block_rows(remove(prepared))
    assert [rows[0].entering, *(row.leaving for row in rows)] == list(influential_rows(prepared))


@given(masked_networks())
def test_the_network_means_the_same(network):
    assert_same_meaning(network, run(network, *before, remove))


@given(masked_networks())
def test_the_interface_is_untouched_and_a_second_run_does_nothing(network):
    slim = run(network, *before, remove)
    assert_same_interface(network, slim)
    assert remove(slim) is slim


@given(masked_networks())
def test_token_masks_count_as_sight_of_every_row(network):
    """Run too early, the pass cuts what follows the last attention and nothing else."""
    slim = remove(network)
    assert [rows.entering for rows in ir.block_rows(slim)] == [rows.entering for rows in ir.block_rows(network)]
    assert_same_meaning(network, slim)


@given(st.integers(1, 3))
def test_the_last_block_of_a_dense_network_computes_the_classifier_row_only(depth):
    geometry = Geometry(depth, 2, 3, 6, 4, (2, 2), (2, 2), 1, 3, qkv_bias=True, pre_logits=False, residual_scale=1.0)
    slim = remove(dense_network(geometry, 0))
    assert ir.block_rows(slim) == (ir.BlockRows(5, 5, 5),) * (depth - 1) + (ir.BlockRows(5, 5, 1),)


def test_a_network_without_blocks_keeps_its_prefix_only():
    geometry = Geometry(0, 1, 1, 4, 1, (2, 2), (2, 2), 2, 3, qkv_bias=True, pre_logits=False, residual_scale=1.0)
    network = dense_network(geometry, 0)
    slim = remove(network)
    assert ir.embedded_rows(slim) == 2
    assert_same_meaning(network, slim)
    assert remove(slim) is slim
