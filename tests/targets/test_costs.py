"""What groups of heads cost: padding against operations, and heads against threads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimc.targets.costs import CountedCosts, Kernel, MeasuredCosts, Work

WORK = Work(dim=384, queries=100, keys=200)
COSTS = MeasuredCosts(threads=2, projection=10.0, alone=Kernel(5.0, 100.0, 20.0), together=Kernel(50.0, 200.0, 30.0))
SCORES = 100 * 200


@pytest.mark.parametrize(("queries", "keys"), [(197, 197), (1, 120)])
def test_the_multiply_accumulates_of_a_channel_are_its_share_of_every_product(queries, keys):
    projections = queries * 384 + keys * 384 + keys * 384 + queries * 384
    each = projections + queries * keys + queries * keys
    assert Work(384, queries, keys, batch=3).channel_macs == 3 * each


def test_counted_costs_are_all_channels_and_once_for_the_group():
    assert CountedCosts(7.0).group(3, 16, WORK) == 7 + 3 * 16 * WORK.channel_macs


def test_a_head_alone_costs_its_projections_its_launch_and_its_scores():
    projections = 10e-6 * 2 * (100 + 200) * 384 * 48
    assert COSTS.group(1, 48, WORK) == pytest.approx(projections + 5 + 1e-6 * SCORES * (100 + 20 * 48))


@pytest.mark.parametrize(("heads", "rounds"), [(2, 1), (3, 2), (4, 2), (7, 4)])
def test_heads_together_take_as_many_rounds_as_threads_leave(heads, rounds):
    projections = 10e-6 * 2 * (100 + 200) * 384 * heads * 48
    expected = projections + 50 + 1e-6 * rounds * SCORES * (200 + 30 * 48)
    assert COSTS.group(heads, 48, WORK) == pytest.approx(expected)


def test_a_head_of_several_images_is_shared_as_heads_are():
    batch = Work(384, 100, 200, batch=4)
    projections = 4 * 10e-6 * 2 * (100 + 200) * 384 * 48
    assert COSTS.group(1, 48, batch) == pytest.approx(projections + 5 + 1e-6 * 2 * SCORES * (200 + 30 * 48))


@given(st.integers(1, 8), st.integers(1, 64), st.integers(1, 4))
def test_more_heads_or_wider_ones_never_cost_less(heads, width, batch):
    work = Work(64, 50, 50, batch)
    for costs in (COSTS, CountedCosts(100.0)):
        assert costs.group(heads, width + 1, work) > costs.group(heads, width, work)
        if heads > 1:
            assert costs.group(heads + 1, width, work) > costs.group(heads, width, work)
