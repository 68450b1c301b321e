"""Heads are sorted into groups of one width each, at the least cost."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from slimc import ir
from slimc.compiler.pipeline import passes_for
from slimc.passes.pack_heads import PackHeads, partition, rounded
from slimc.targets.costs import CountedCosts, Kernel, MeasuredCosts, Work
from slimc.targets.target import TARGETS, Target, find_target
from tests.networks import Geometry, assert_same_interface, assert_same_meaning, dense_network, masked_networks, run

targets = st.sampled_from(TARGETS).map(find_target)


def packed(network: ir.Model, target: Target) -> ir.Model:
    return run(network, *passes_for(target))


def attentions(network: ir.Model) -> list[ir.Attention]:
    return [block.attention for block in network.blocks if isinstance(block.attention, ir.Attention)]


def partitions(count: int) -> Iterator[tuple[int, ...]]:
    """Every way to cut `count` heads into runs."""
    for cuts in itertools.product((False, True), repeat=count - 1):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut] + [count]
        yield tuple(np.diff([0, *ends]).tolist())


def cost(sizes: tuple[int, ...], widths: list[int], target: Target, work: Work) -> float:
    starts = np.cumsum([0, *sizes[:-1]])
    pairs = zip(sizes, starts, strict=True)
    return sum(target.costs.group(size, rounded(widths[start], target), work) for size, start in pairs)


numbers = st.integers(0, 50).map(float)
kernels = st.builds(Kernel, launch=numbers, score=numbers, channel=numbers)
measured = st.builds(MeasuredCosts, threads=st.integers(1, 3), projection=numbers, alone=kernels, together=kernels)
counted = st.builds(CountedCosts, group_macs=st.integers(0, 4000).map(float))
works = st.builds(
    Work, dim=st.integers(1, 8), queries=st.integers(1, 9), keys=st.integers(1, 9), batch=st.integers(1, 3)
)


@given(
    widths=st.lists(st.integers(1, 64), min_size=1, max_size=8).map(lambda w: sorted(w, reverse=True)),
    target=st.builds(
        Target,
        name=st.just("any"),
        width_multiple=st.sampled_from((1, 2, 8)),
        min_width=st.sampled_from((1, 16)),
        min_heads=st.integers(1, 3),
        max_heads=st.none() | st.integers(1, 8),
        costs=counted | measured,
    ),
    work=works,
)
def test_the_partition_is_the_cheapest_of_all_and_takes_the_fewest_groups_of_these(widths, target, work):
    least = min(target.min_heads, len(widths))
    most = target.max_heads or len(widths)
    allowed = [sizes for sizes in partitions(len(widths)) if min(sizes) >= least and max(sizes) <= most]
    assume(allowed)
    best = min((cost(sizes, widths, target, work), len(sizes)) for sizes in allowed)
    found = partition(widths, target, work)
    assert sum(found) == len(widths)
    assert cost(found, widths, target, work) == pytest.approx(best[0])
    assert len(found) == best[1]


def test_padding_is_weighed_against_groups():
    target = Target("any", max_heads=None, costs=CountedCosts(1000))
    assert partition([10, 10, 2, 2], target, Work(1, 1, 1)) == (4,)
    assert partition([10, 10, 2, 2], target, Work(20, 2, 2)) == (2, 2)


@given(masked_networks(), targets)
def test_groups_are_as_wide_as_their_widest_head_and_no_wider(network, target):
    unpacked = run(network, *passes_for(target)[:-1])
    for was, now in zip(attentions(unpacked), attentions(packed(network, target)), strict=True):
        widths = sorted((len(head.value.weight) for head in was.heads), reverse=True)
        assert now.groups is not None
        starts = np.cumsum([0, *now.groups[:-1]])
        for size, start in zip(now.groups, starts, strict=True):
            group = now.heads[start : start + size]
            assert {len(head.value.weight) for head in group} == {rounded(widths[start], target)}
            assert len({len(head.query.weight) for head in group}) == 1


@given(masked_networks(), st.sampled_from([name for name in TARGETS if name.startswith("sm")]).map(find_target))
def test_tensor_cores_get_widths_they_can_use_and_no_head_alone(network, target):
    for attention in attentions(packed(network, target)):
        widths = {len(part.weight) for head in attention.heads for part in (head.query, head.key, head.value)}
        assert all(width % 8 == 0 and width >= 16 for width in widths)
        assert attention.groups is not None
        assert len(attention.heads) == 1 or min(attention.groups) >= 2


@given(masked_networks(), targets)
def test_the_network_means_the_same(network, target):
    assert_same_meaning(network, packed(network, target))


@given(masked_networks(), targets)
def test_the_interface_is_untouched_and_a_second_run_does_nothing(network, target):
    slim = packed(network, target)
    assert_same_interface(network, slim)
    assert PackHeads(target)(slim) is slim


@pytest.mark.parametrize(("name", "asked", "mixed"), [("generic", [1, 2], [4, 4]), ("sm89", [16, 16], [16, 16])])
def test_queries_and_values_are_padded_apart_unless_the_target_stacks_them(name, asked, mixed):
    geometry = Geometry(1, 2, 4, 6, 4, (2, 2), (2, 2), 1, 3, qkv_bias=True, pre_logits=False, residual_scale=1.0)
    network = dense_network(geometry, 0)
    attention = network.blocks[0].attention
    assert isinstance(attention, ir.Attention)
    narrow = tuple(
        replace(head, query=_first(head.query, 1 + i), key=_first(head.key, 1 + i))
        for i, head in enumerate(attention.heads)
    )
    network = replace(network, blocks=(replace(network.blocks[0], attention=replace(attention, heads=narrow)),))
    slim = PackHeads(find_target(name))(network)
    assert sorted(len(head.query.weight) for head in attentions(slim)[0].heads) == asked
    assert [len(head.value.weight) for head in attentions(slim)[0].heads] == mixed
    assert_same_meaning(network, slim)


def _first(linear: ir.Linear, count: int) -> ir.Linear:
    return ir.Linear(linear.weight[:count], None if linear.bias is None else linear.bias[:count])
