"""Output biases become a channel of what the last product of a branch reads."""

from dataclasses import replace

import numpy as np
from hypothesis import given

from slimc import ir
from slimc.compiler.pipeline import passes_for
from slimc.passes.fold_output_biases import FoldOutputBiases
from slimc.targets.target import Target, find_target
from tests.networks import (
    Geometry,
    assert_same_interface,
    assert_same_meaning,
    branches,
    dense_network,
    masked_networks,
    run,
)

fold = FoldOutputBiases(Target("any"))
before = passes_for(find_target("generic"))[:-1]
SMALL = Geometry(1, 2, 3, 6, 4, (2, 2), (2, 2), 1, 3, qkv_bias=True, pre_logits=False, residual_scale=1.0)


@given(masked_networks())
def test_branches_are_one_channel_wider_and_have_no_output_bias(network):
    plain = run(network, *before)
    for old, new in zip(plain.blocks, fold(plain).blocks, strict=True):
        if isinstance(old.attention, ir.Attention) and old.attention.heads[0].query.bias is not None:
            assert isinstance(new.attention, ir.Attention)
            assert new.attention.output_bias is None
            assert channels(new.attention) == channels(old.attention) + 1
            assert widths(new.attention, "query") == widths(old.attention, "query")
            grown = [b > a for a, b in zip(widths(old.attention, "value"), widths(new.attention, "value"), strict=True)]
            assert grown.index(True) == np.argmin(widths(old.attention, "value"))
        else:
            assert new.attention is old.attention
        if isinstance(old.mlp, ir.Mlp):
            assert isinstance(new.mlp, ir.Mlp)
            assert new.mlp.down.bias is None
            assert len(new.mlp.up.weight) == len(old.mlp.up.weight) + 1


def widths(attention: ir.Attention, part: str) -> list[int]:
    return [len(getattr(head, part).weight) for head in attention.heads]


def channels(attention: ir.Attention) -> int:
    return sum(widths(attention, "value"))


@given(masked_networks())
def test_the_network_means_the_same_with_ghosts_and_absent_rows(network):
    plain = run(network, *before)
    assert_same_meaning(network, fold(plain))


@given(masked_networks())
def test_the_interface_is_untouched_and_a_second_run_does_nothing(network):
    folded = fold(run(network, *before))
    assert_same_interface(network, folded)
    assert fold(folded) is folded


def test_the_constants_are_exact_in_float32():
    """The bias is divided by a power of two, and gelu(8) rounds to 8."""
    folded = fold(dense_network(SMALL, 0))
    attention, mlp = branches(folded.blocks[0])
    assert mlp.up.bias is not None
    assert mlp.up.bias[-1] == 8.0
    np.testing.assert_array_equal(
        mlp.down.weight[:, -1] * 8.0, branches(dense_network(SMALL, 0).blocks[0])[1].down.bias
    )
    assert attention.heads[0].value.bias is not None
    assert attention.heads[0].value.bias[-1] == 1.0


def test_attention_that_is_computed_without_values_keeps_its_bias():
    geometry = replace(SMALL, grid=(5, 5), dim=24, head_dim=12)
    network = run(dense_network(geometry, 0), *before)
    folded = FoldOutputBiases(Target("any", absorb=True))(network)
    assert branches(network.blocks[0])[0].output_bias is not None
    assert branches(folded.blocks[0])[0] is branches(network.blocks[0])[0]
    assert branches(folded.blocks[0])[1].down.bias is None


def test_gates_and_masks_keep_a_branch_as_it_is():
    network = dense_network(SMALL, 0)
    attention, mlp = branches(network.blocks[0])
    gated = replace(network, blocks=(replace(network.blocks[0], gates=ir.Gates(mlp=ir.Linear(np.ones((1, 6))))),))
    assert fold(gated) is gated
    heads = tuple(replace(head, mask=np.ones(3)) for head in attention.heads)
    masked = replace(attention, heads=heads), replace(mlp, mask=np.ones(4))
    network = replace(network, blocks=(replace(network.blocks[0], attention=masked[0], mlp=masked[1]),))
    assert fold(network) is network
