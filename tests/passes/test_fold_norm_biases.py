"""Biases behind a norm become the column of its spare channel."""

from dataclasses import replace

import numpy as np
from hypothesis import given

from slimc import ir
from slimc.compiler.pipeline import passes_for
from slimc.passes.fold_norm_biases import FoldNormBiases
from slimc.passes.fold_output_biases import FoldOutputBiases
from slimc.targets.target import Target, find_target
from tests.networks import (
    Geometry,
    assert_same_interface,
    assert_same_meaning,
    branches,
    dense_network,
    dense_networks,
    masked_networks,
    run,
)

fold = FoldNormBiases()
before = passes_for(find_target("generic"))[:-1]
SMALL = Geometry(1, 2, 3, 6, 4, (2, 2), (2, 2), 1, 3, qkv_bias=True, pre_logits=False, residual_scale=1.0)


def linears(attention: ir.Attention) -> list[ir.Linear]:
    return [linear for head in attention.heads for linear in (head.query, head.key, head.value)]


@given(dense_networks())
def test_layers_behind_a_norm_lose_their_biases_and_keep_their_shapes(network):
    for old, new in zip(network.blocks, fold(network).blocks, strict=True):
        (attention, mlp), (folded, folded_mlp) = branches(old), branches(new)
        pairs = [*zip(linears(attention), linears(folded), strict=True), (mlp.up, folded_mlp.up)]
        assert all(after.bias is None and after.weight.shape == was.weight.shape for was, after in pairs)
        assert isinstance(folded_mlp.norm, ir.LayerNorm)
        assert sorted(folded_mlp.norm.bias) == [0.0] * (network.dim - 1) + [1.0]
        np.testing.assert_array_equal(folded_mlp.norm.weight, 1.0 - folded_mlp.norm.bias)


@given(dense_networks())
def test_a_dense_network_means_the_same(network):
    assert_same_meaning(network, fold(network))


@given(masked_networks())
def test_a_slim_network_means_the_same_alone_and_with_its_output_biases_folded(network):
    slim = run(network, *before)
    assert_same_meaning(network, fold(slim))
    assert_same_meaning(network, fold(FoldOutputBiases(Target("any"))(slim)))


@given(masked_networks())
def test_the_interface_is_untouched_and_a_second_run_does_nothing(network):
    folded = fold(run(network, *before))
    assert_same_interface(network, folded)
    assert fold(folded) is folded


def test_the_channel_is_the_one_that_adds_least_to_the_others():
    network = dense_network(SMALL, 0)
    mlp = branches(network.blocks[0])[1]
    weight = mlp.up.weight.copy()
    weight[:, 4] *= 1e-3
    faint = replace(network, blocks=(replace(network.blocks[0], mlp=replace(mlp, up=ir.Linear(weight, mlp.up.bias))),))
    norm = branches(fold(faint).blocks[0])[1].norm
    assert isinstance(norm, ir.LayerNorm)
    assert norm.bias.argmax() == 4


def test_zero_rows_gates_and_layers_without_biases_keep_a_branch_as_it_is():
    network = dense_network(SMALL, 0)
    attention, mlp = branches(network.blocks[0])
    rows = np.array([0, 2])
    bare = tuple(
        replace(h, query=ir.Linear(h.query.weight), key=ir.Linear(h.key.weight), value=ir.Linear(h.value.weight))
        for h in attention.heads
    )
    for kept in (
        replace(attention, rows=rows, ghosts=3),
        replace(attention, ghosts=1),
        replace(attention, token_mask=np.array([1.0, 0, 1, 1, 1])),
        replace(attention, heads=bare),
    ):
        folded = fold(replace(network, blocks=(replace(network.blocks[0], attention=kept),)))
        assert folded.blocks[0].attention is kept
    for ffn in (
        replace(mlp, rows=rows),
        replace(mlp, token_mask=np.array([1.0, 0, 1, 1, 1])),
        replace(mlp, up=ir.Linear(mlp.up.weight)),
    ):
        assert fold(replace(network, blocks=(replace(network.blocks[0], mlp=ffn),))).blocks[0].mlp is ffn
    gated = replace(network, blocks=(replace(network.blocks[0], gates=ir.Gates(mlp=ir.Linear(np.ones((1, 6))))),))
    assert fold(gated) is gated
