"""Empty heads go, and branches without work become constants or nothing."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from slimc import ir
from slimc.ir.interpret.linear import apply, gelu
from slimc.passes.fold_biases import FoldBiases
from slimc.passes.fold_scales import FoldScales
from slimc.passes.remove_channels import RemoveMaskedChannels
from slimc.passes.remove_empty import RemoveEmptyBranches
from slimc.passes.remove_hidden import RemoveMaskedHidden
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

remove = RemoveEmptyBranches()
before = (RemoveMaskedChannels(), RemoveMaskedHidden(), FoldBiases(), RemoveMaskedPositions())
SMALL = Geometry(1, 2, 3, 6, 4, (2, 2), (2, 2), 1, 3, qkv_bias=True, pre_logits=False, residual_scale=0.5)


@given(masked_networks())
def test_branches_that_are_left_have_work_to_do(network):
    tokens = ir.embedded_rows(network)
    for masked, block in zip(network.blocks, run(network, *before, remove).blocks, strict=True):
        attention, mlp = branches(masked)
        widths = [len(kept(head.mask, 1)) for head in attention.heads]
        if any(widths) and len(kept(attention.token_mask, tokens)):
            assert isinstance(block.attention, ir.Attention)
            assert [len(head.value.weight) for head in block.attention.heads] == [w for w in widths if w]
        else:
            assert isinstance(block.attention, ir.Constant)
        works = len(kept(mlp.mask, 1)) and len(kept(mlp.token_mask, tokens))
        assert isinstance(block.mlp, ir.Mlp if works else ir.Constant)


@given(masked_networks())
def test_the_network_means_the_same(network):
    assert_same_meaning(network, run(network, *before, remove))


@given(masked_networks())
def test_the_interface_is_untouched_and_a_second_run_does_nothing(network):
    slim = run(network, *before, remove)
    assert_same_interface(network, slim)
    assert remove(slim) is slim


@given(dense_networks())
def test_a_network_without_empty_parts_is_returned_as_it_is(network):
    assert remove(network) is network


def test_a_branch_whose_constant_is_zero_disappears():
    network = dense_network(SMALL, 0)
    attention, mlp = branches(network.blocks[0])
    empty = replace(
        network.blocks[0],
        attention=replace(attention, heads=(), output_bias=np.zeros(6)),
        mlp=replace(mlp, up=ir.Linear(np.zeros((0, 6)), np.zeros(0)), down=ir.Linear(np.zeros((6, 0)), None)),
    )
    slim = remove(replace(network, blocks=(empty,)))
    assert slim.blocks[0].attention is None
    assert slim.blocks[0].mlp is None
    assert_same_meaning(replace(network, blocks=(empty,)), slim)


def test_an_ffn_that_computes_no_row_becomes_what_it_adds_to_a_zero_row():
    network = dense_network(SMALL, 0)
    mlp = replace(branches(network.blocks[0])[1], rows=np.array([], np.int64))
    idle = replace(network, blocks=(replace(network.blocks[0], mlp=mlp),))
    constant = remove(idle).blocks[0].mlp
    assert isinstance(constant, ir.Constant)
    expected = 0.5 * apply(mlp.down, gelu(apply(mlp.up, np.zeros(6))))
    np.testing.assert_allclose(constant.vector, expected, rtol=0, atol=1e-12)
    assert_same_meaning(idle, remove(idle))


@pytest.mark.parametrize("part", ["query", "key"])
def test_a_head_that_only_averages_is_kept(part):
    network = dense_network(SMALL, 0)
    attention, _ = branches(network.blocks[0])
    nothing = ir.Linear(np.zeros((0, 6)))
    heads = tuple(replace(head, query=nothing, key=nothing) for head in attention.heads)
    averaging = replace(network, blocks=(replace(network.blocks[0], attention=replace(attention, heads=heads)),))
    assert remove(averaging) is averaging
    assert len(getattr(heads[0], part).weight) == 0


def test_scales_are_taken_along():
    network = FoldScales()(dense_network(SMALL, 0))
    attention, _ = branches(network.blocks[0])
    scaled = replace(network.blocks[0], attention=replace(attention, heads=(), residual_scale=0.25))
    constant = remove(replace(network, blocks=(scaled,))).blocks[0].attention
    assert isinstance(constant, ir.Constant)
    np.testing.assert_array_equal(constant.vector, 0.25 * np.asarray(attention.output_bias))


def test_attention_to_ghosts_alone_is_the_value_bias_through_the_output():
    network = FoldScales()(dense_network(SMALL, 0))
    attention = replace(branches(network.blocks[0])[0], rows=np.array([], np.int64), ghosts=3)
    ghostly = replace(network, blocks=(replace(network.blocks[0], attention=attention),))
    assert isinstance(remove(ghostly).blocks[0].attention, ir.Constant)
    assert_same_meaning(ghostly, remove(ghostly))
