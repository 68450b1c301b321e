from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimc import ir
from slimc.errors import PassError
from slimc.ir.interpret.model import interpret
from slimc.ir.validate import validate
from slimc.passes.remove_settled_gates import RemoveSettledGates, Settled
from tests.gated import images_for, random_adaptive

OPEN = Settled(heads=(None,) * 4)


def forced(policy: ir.Linear, row: int, on: bool) -> ir.Linear:
    """`policy` with decision `row` the same for every image."""
    weight, bias = policy.weight.copy(), np.zeros(len(policy.weight)) if policy.bias is None else policy.bias.copy()
    weight[row], bias[row] = 0.0, 1.0 if on else -1.0
    return ir.Linear(weight, bias)


def settle(model: ir.Model, settled: Settled) -> ir.Model:
    """`model` whose block 1 decides as `settled` says, image or no image."""
    block = model.blocks[1]
    gates = block.gates
    assert gates is not None
    assert gates.attention is not None
    assert gates.mlp is not None
    if settled.attention is not None:
        gates = replace(gates, attention=forced(gates.attention, 0, settled.attention))
    if settled.mlp is not None:
        assert gates.mlp is not None
        gates = replace(gates, mlp=forced(gates.mlp, 0, settled.mlp))
    for head, value in enumerate(settled.heads):
        if value is not None:
            assert gates.heads is not None
            gates = replace(gates, heads=forced(gates.heads, head, value))
    return replace(model, blocks=(model.blocks[0], replace(block, gates=gates), model.blocks[2]))


decisions = st.sampled_from([None, True, False])
some_settled = st.builds(Settled, decisions, decisions, st.tuples(*[decisions] * 4))


@settings(max_examples=25, deadline=None)
@given(some_settled, st.sampled_from(["plain", "v2", "attn"]), st.integers(0, 1000))
def test_the_network_means_the_same_where_the_decisions_are_settled(settled, head_effect, seed):
    searched = random_adaptive(seed, head_effect=head_effect)
    model = settle(ir.to_float64(searched.masked), settled)
    slim = RemoveSettledGates((Settled(), settled, OPEN))(model)
    validate(slim)
    images = images_for(searched, 2, seed)
    np.testing.assert_allclose(interpret(slim, images), interpret(model, images), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("head_effect", "up"), [("plain", (32, 12)), ("v2", (24, 16))])
def test_a_head_that_is_never_on_goes_with_what_obeys_it(head_effect, up):
    model = random_adaptive(head_effect=head_effect).masked
    block = RemoveSettledGates((Settled(), Settled(heads=(None, False, True, None)), OPEN))(model).blocks[1]
    assert isinstance(block.attention, ir.Attention)
    assert isinstance(block.mlp, ir.Mlp)
    assert block.gates is not None
    assert block.gates.heads is not None
    assert [head.gate for head in block.attention.heads] == [0, None, 1]
    assert block.gates.heads.weight.shape == (2, 16)
    assert block.mlp.up.weight.shape == up
    numbers = block.mlp.input_gates if head_effect == "plain" else block.mlp.unit_gates
    assert numbers is not None
    assert sorted(set(numbers.tolist())) == [-1, 0, 1]


def test_branches_go_with_their_gates_or_lose_them():
    model = random_adaptive().masked
    settled = (Settled(), Settled(False, True, (None,) * 4), Settled(True, False, (None,) * 4))
    first, second = RemoveSettledGates(settled)(model).blocks[1:]
    assert (first.attention, second.mlp) == (None, None)
    assert first.gates is not None
    assert (first.gates.attention, first.gates.mlp) == (None, None)
    assert first.gates.tokens is not None
    assert isinstance(second.attention, ir.Attention)


def test_a_head_that_passes_its_values_on_is_never_removed():
    model = random_adaptive(head_effect="attn").masked
    block = RemoveSettledGates((Settled(), Settled(heads=(False, True, None, None)), OPEN))(model).blocks[1]
    assert isinstance(block.attention, ir.Attention)
    assert [head.gate for head in block.attention.heads] == [0, None, 1, 2]


def test_nothing_settled_is_nothing_to_do():
    model = random_adaptive().masked
    assert RemoveSettledGates((Settled(), OPEN, OPEN))(model) is model


def test_entries_that_do_not_fit_the_model_are_refused():
    model = random_adaptive().masked
    with pytest.raises(PassError, match="2 entries for 3 blocks"):
        RemoveSettledGates((Settled(), OPEN))(model)
    with pytest.raises(PassError, match="1 entries for 4 head decisions"):
        RemoveSettledGates((Settled(), Settled(heads=(None,)), OPEN))(model)
