"""A plan says how each attention is computed; what is emitted and counted by it is tested where that is done."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimc import ir
from slimc.compiler.pipeline import compile_model, passes_for
from slimc.targets.plan import AttentionPlan, plan_model
from slimc.targets.target import Target, find_target
from tests.networks import Geometry, dense_network, masked_networks
from tests.selecting import random_searched, small_config

# 10 rows of 24 channels, two heads of 12.
GEOMETRY = Geometry(1, 2, 12, 24, 4, (2, 2), (3, 3), 1, 3, qkv_bias=False, pre_logits=False, residual_scale=1.0)
CPU = find_target("cpu", threads=2)
targets = st.sampled_from(("generic", "cpu", "sm86")).map(find_target)


def planned(
    target: Target, *, live: list[int] | None = None, gates: ir.Gates | None = None, **changes
) -> AttentionPlan:
    """The plan of one attention, all biases and the scale of its scores gone, with `changes`."""
    network = dense_network(GEOMETRY, 0)
    block = network.blocks[0]
    assert isinstance(block.attention, ir.Attention)
    attention = replace(block.attention, **{"scale": 1.0, "output_bias": None, **changes})
    rows = None if live is None else np.array(live)
    network = replace(network, blocks=(replace(block, attention=attention, live=rows, gates=gates),))
    plan = plan_model(network, target)[0].attention
    assert plan is not None
    return plan


def test_all_rows_are_queries_and_keys_of_one_product():
    plan = planned(find_target("generic"))
    assert (plan.projection, plan.operator, plan.ghost_rows) == ("qkv", False, 0)
    np.testing.assert_array_equal(plan.query_rows, np.arange(10))
    np.testing.assert_array_equal(plan.key_rows, np.arange(10))


@pytest.mark.parametrize(("target", "projection"), [("generic", "q, kv"), ("sm89", "qkv"), ("cpu", "absorbed")])
def test_what_is_computed_for_a_single_query_is_the_targets_choice(target, projection):
    plan = planned(find_target(target), live=[0])
    assert plan.projection == projection
    np.testing.assert_array_equal(plan.query_rows, [0])
    assert not (plan.absorbed and plan.operator)


def test_gates_keep_products_with_keys_and_values():
    gates = ir.Gates(attention=ir.Linear(np.ones((1, 24))))
    assert planned(CPU).operator
    assert planned(CPU, live=[0]).absorbed
    assert not planned(CPU, gates=gates).operator
    assert not planned(CPU, live=[0], gates=gates).absorbed


def test_rows_that_a_selection_hides_keep_products():
    searched = random_searched(small_config(lvvit=False, keep=(3,), pruning_loc=(1,), depth=3))
    operators = [plan.attention.operator for plan in plan_model(searched.masked, CPU) if plan.attention is not None]
    assert operators == [True, False, False]


def test_queries_of_a_head_alone_are_filled_up_to_parts_of_one_size():
    three = replace(CPU, query_parts=3, absorb=False)
    alone, together = planned(three, groups=(1, 1)), planned(three, groups=(2,))
    assert alone.divisible_queries is None  # there is no further row
    assert (alone.query_parts, alone.uses_operator(1), together.uses_operator(2)) == (1, False, True)
    alone, together = (planned(three, live=[0, 4, 5, 9], groups=groups) for groups in ((1, 1), (2,)))
    assert alone.divisible_queries == together.divisible_queries == 6
    np.testing.assert_array_equal(alone.query_rows, [0, 4, 5, 9, 1, 2])
    assert (alone.query_parts, alone.uses_operator(1)) == (3, True)
    np.testing.assert_array_equal(together.query_rows, [0, 4, 5, 9])


@pytest.mark.parametrize(("ghosts", "rows"), [(0, 0), (1, 6), (5, 6), (70, 6)])
def test_ghosts_are_as_many_zero_rows_as_make_a_number_of_keys_that_the_target_likes(ghosts, rows):
    plan = planned(find_target("sm89"), ghosts=ghosts)
    assert (plan.ghost_rows, plan.projected_ghosts, plan.keys) == (rows, rows, 10 + rows)
    apart = planned(replace(find_target("sm89"), spare_query_macs=0.0), ghosts=ghosts)
    assert (apart.ghost_rows, apart.projected_ghosts) == (rows, 0)


@given(masked_networks(), targets)
def test_queries_begin_with_the_live_rows_and_can_be_cut(network, target):
    slim = compile_model(network, passes_for(target))
    for block, plan in zip(slim.blocks, plan_model(slim, target), strict=True):
        assert (plan.attention is None) == (not isinstance(block.attention, ir.Attention))
        assert (plan.mlp is None) == (not isinstance(block.mlp, ir.Mlp))
        if plan.attention is not None:
            queries, live = plan.attention.query_rows, plan.attention.live_rows
            np.testing.assert_array_equal(queries[: len(live)], live)
            assert len(live) == plan.rows.leaving
            assert len(queries) % plan.attention.query_parts == 0
            assert sum(map(len, plan.attention.groups)) == len(plan.attention.node.heads)
