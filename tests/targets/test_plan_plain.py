"""What is planned for attentions that normalise or turn their queries and keys."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from slimc import ir
from slimc.targets.plan import AttentionPlan, plan_model
from slimc.targets.target import Target, find_target
from tests.plain_networks import plain_network

CPU = find_target("cpu", threads=2)


def planned(
    target: Target, *, live: list[int] | None = None, changes: dict[str, Any] | None = None, **features: Any
) -> AttentionPlan:
    """The plan of the attention of a network with these features, and with `changes` of the attention."""
    network = plain_network(0, depth=1, **features)
    block = network.blocks[0]
    assert isinstance(block.attention, ir.Attention)
    attention = replace(block.attention, **(changes or {}))
    block = replace(block, attention=attention, live=None if live is None else np.array(live))
    plan = plan_model(replace(network, blocks=(block,)), target)[0].attention
    assert isinstance(plan, AttentionPlan)
    return plan


@pytest.mark.parametrize("biases", ["", "qkv", "qv", "k", "v"])
@pytest.mark.parametrize("target", ["generic", "cpu", "sm89"])
def test_turned_queries_keys_and_values_are_one_product_whatever_their_biases(target, biases):
    plan = planned(find_target(target), rotation="shared", biases=biases)
    assert (plan.projection, plan.query_bias_in_product) == ("qkv", True)


def test_the_operator_turns_where_it_attends():
    assert planned(CPU, rotation="shared").rotary_operator
    assert planned(CPU, rotation="per head", ragged=True).rotary_operator
    assert not planned(find_target("generic"), rotation="shared").rotary_operator
    assert not planned(CPU).rotary_operator


@pytest.mark.parametrize(
    "features", [{"rotation": "shared"}, {"qk_norm": "rms"}, {"output_norm": "layer"}, {"masks": "soft"}]
)
def test_nothing_can_be_absorbed_by_what_is_not_linear(features):
    linear: dict[str, Any] = {"biases": "q", "live": [0], "changes": {"scale": 1.0}, "grid": (4, 4)}
    assert planned(CPU, **linear).absorbed
    assert not planned(CPU, **linear, **features).absorbed


def test_groups_are_stacked_where_queries_and_values_have_one_width():
    sm89 = find_target("sm89")
    two: dict[str, Any] = {"heads": 4, "biases": "qv", "ragged": True}
    assert not planned(sm89, **two, value_dim=4).stacked_groups
    equal = planned(sm89, heads=2, biases="qv", changes={"groups": (1, 1)})
    assert equal.stacked_groups
    assert not planned(sm89, heads=2, biases="qv", rotation="shared", changes={"groups": (1, 1)}).stacked_groups


@pytest.mark.parametrize("features", [{"layer_scale": True}, {"residual_scale": 0.5}, {}])
def test_the_last_product_adds_the_residual_stream_where_nothing_multiplies_the_branch(features):
    plan = planned(CPU, biases="q", **features)
    assert plan.residual_in_product == (not features)


def test_ghosts_of_turned_keys_are_zero_rows_of_the_product_where_that_is_free():
    plan = planned(find_target("sm89"), rotation="shared", zero_rows=3)
    assert plan.ghosts_projected
    assert plan.projected_ghosts == plan.ghost_rows > 0
    assert not planned(find_target("generic"), rotation="shared", zero_rows=3).ghosts_projected
