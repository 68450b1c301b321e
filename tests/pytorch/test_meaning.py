"""A module computes in float64 what the interpreter says, for whatever the IR can say, and gives the same IR back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import slimc
from slimc import ir
from slimc.compiler.adaptive import limiting_passes
from slimc.compiler.limits import limits_of
from slimc.compiler.load import load_network
from slimc.compiler.pipeline import compile_model, passes_for
from slimc.errors import CheckpointError, PassError
from slimc.targets.target import find_target
from tests import gated, selecting
from tests.artefacts import OPTIONS, VECTORS
from tests.models.timm_networks import entry_points, masks_of, tiny
from tests.models.timm_networks import images_of as images_of_module
from tests.networks import images_for, masked_networks, soft_networks
from tests.plain_networks import images_of, plain_network, plain_networks, plain_rewritten_networks
from tests.pytorch.comparing import assert_computes

TARGETS = ("generic", "cpu", "sm90")
targets = st.sampled_from(TARGETS)


@settings(max_examples=150)
@given(plain_networks() | plain_rewritten_networks(), targets)
def test_plain_networks(network, target):
    assert_computes(network, images_of(network), target)


# What the interpreter says of a norm over no hidden unit.
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value encountered in divide")
@settings(max_examples=100)
@given(plain_networks(), targets)
def test_compiled_plain_networks(network, target):
    try:
        slim = compile_model(network, passes_for(find_target(target)))
    except PassError:  # a mask that cannot leave
        return
    assert_computes(slim, images_of(network), target)


@settings(max_examples=60)
@given(masked_networks() | soft_networks(), targets)
def test_masked_networks(network, target):
    assert_computes(network, images_for(network), target)


@settings(max_examples=100)
@given(masked_networks(), targets)
def test_compiled_networks(network, target):
    assert_computes(compile_model(network, passes_for(find_target(target))), images_for(network), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("vector", VECTORS)
def test_vectors(vector, target):
    network = load_network(VECTORS[vector], OPTIONS.get(vector))
    images = np.random.default_rng(0).standard_normal((2, 3, *network.masked.image), np.float32)
    slim = compile_model(network.masked, passes_for(find_target(target)))
    for model in (slim, *((network.masked, network.dense) if target == TARGETS[0] else ())):
        assert_computes(model, images, target)


@settings(max_examples=40)
@given(selecting.searched_models(), st.sampled_from(("slim", "masked", "dense")), targets)
def test_networks_that_select(searched, variant, target):
    model = searched.dense if variant == "dense" else searched.masked
    slim = compile_model(model, passes_for(find_target(target))) if variant == "slim" else model
    assert_computes(slim, selecting.images_for(searched), target)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1000),
    head_effect=st.sampled_from(["plain", "v2", "attn"]),
    tokens_with_mlp=st.booleans(),
    tokens_from=st.sampled_from([None, 0]),
    norm_policy=st.booleans(),
    capacity=st.booleans(),
    slim=st.booleans(),
)
def test_networks_that_decide(seed, head_effect, tokens_with_mlp, tokens_from, norm_policy, capacity, slim):
    flags = {"tokens_with_mlp": tokens_with_mlp and tokens_from is not None, "tokens_from": tokens_from}
    searched = gated.random_adaptive(seed, head_effect=head_effect, norm_policy=norm_policy, **flags)
    images = gated.images_for(searched, 3, seed)
    usage = gated.observe(searched, images)[1]
    clear = usage.margin > 1e-6
    assume(clear.any())
    first = limiting_passes(limits_of(usage, searched.masked, 0.5)) if capacity else ()
    model = compile_model(searched.masked, (*first, *(passes_for(find_target("cpu")) if slim else ())))
    assume(
        all(
            decides_something(block, rows, model.prefix)
            for block, rows in zip(model.blocks, ir.block_rows(model), strict=True)
        )
    )
    assert_computes(model, images[clear], "cpu")


def decides_something(block: ir.Block, rows: ir.BlockRows, prefix: int) -> bool:
    """Whether there is a decision where there are gates: the interpreter asks for the least margin of all."""
    gates = block.gates
    policies = gates is None or any(each is not None for each in (gates.attention, gates.mlp, gates.heads))
    return policies or rows.entering > prefix


@pytest.mark.parametrize("quantile", [1.0, 0.5])
@pytest.mark.parametrize("name", gated.VECTORS)
def test_capacities(name, quantile):
    released = gated.vector(name)
    masked = released.searched.masked
    limits = limits_of(gated.observe(released.searched, released.images)[1], masked, quantile)
    slim = compile_model(masked, (*limiting_passes(limits), *passes_for(find_target("cpu"))))
    assert_computes(slim, released.images, "cpu")


def test_rows_that_end_in_front_of_a_capacity_keep_their_places():
    """Patches outlive a block whose branches may use few of them: which ones is known by the place, not the score."""
    model = gated.random_adaptive(3, tokens_from=0).masked
    (first, *others) = model.blocks
    assert first.gates is not None
    assert first.gates.tokens is not None
    gates = replace(first.gates, tokens=replace(first.gates.tokens, capacity=3))
    live = np.arange(7)
    model = replace(model, blocks=(replace(first, gates=gates, live=live), *others))
    assert_computes(model, np.random.default_rng(0).standard_normal((3, 3, *model.image)))


@pytest.mark.parametrize("name", entry_points())
def test_timm(name):
    module = tiny(name)
    try:
        network = slimc.load(module)
    except CheckpointError:
        pytest.skip("left out by the front end")
    masked = slimc.mask(network, masks_of(network.dense, np.random.default_rng(len(name)))).masked
    pooled = masked.classifier.rows or masked.classifier.pool is not None
    names = (
        "tokens",
        "blocks.0:nchw",
        *(["features"] if pooled else []),
        *(["logits"] if masked.classifier.heads else []),
    )
    images = images_of_module(module).numpy()
    masked = ir.choose_outputs(masked, names)
    for model in (masked, compile_model(masked, passes_for(find_target("sm90")))):
        assert_computes(model, images, "sm90")


@pytest.mark.parametrize("kind", ["values", "keys"])
def test_heads_may_have_lost_all_channels_of_one_kind(kind):
    model = plain_network(1, heads=2)
    blocks = []
    for block in model.blocks:
        assert isinstance(block.attention, ir.Attention)
        heads = list(block.attention.heads)
        head = heads[0]
        if kind == "keys":
            query, key = (
                ir.Linear(x.weight[:0], None if x.bias is None else x.bias[:0]) for x in (head.query, head.key)
            )
            heads[0] = replace(head, query=query, key=key)
        else:
            value = ir.Linear(head.value.weight[:0], None if head.value.bias is None else head.value.bias[:0])
            heads[0] = replace(head, value=value, output=head.output[:, :0])
        blocks.append(replace(block, attention=replace(block.attention, heads=tuple(heads))))
    assert_computes(replace(model, blocks=tuple(blocks)), images_of(model))
