from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimc import ir
from slimc.compiler.adaptive import limited, limiting_passes
from slimc.compiler.limits import Limits, exact_images, executed_macs, limits_of, needed_macs
from slimc.compiler.pipeline import compile_model
from slimc.errors import OptionError
from slimc.ir.gate_usage import join
from slimc.ir.interpret.model import interpret
from slimc.passes.remove_settled_gates import Settled
from slimc.report.gate_usage import report
from slimc.targets.count import count_macs
from slimc.targets.target import find_target
from tests.gated import images_for, observe, random_adaptive

CPU = find_target("cpu")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["plain", "v2", "attn"]), st.floats(0.3, 1.0))
def test_a_limited_network_is_exact_for_the_images_that_are_called_exact(seed, head_effect, quantile):
    searched = random_adaptive(seed, head_effect=head_effect)
    model, images = ir.to_float64(searched.masked), images_for(searched, 6, seed)
    calibration, usage = observe(searched, images[:3])[1], observe(searched, images)[1]
    limits = limits_of(calibration, model, quantile)
    exact = exact_images(usage, model, limits) & (usage.margin > 1e-5)
    expected, found = interpret(model, images), interpret(limited(model, limits), images)
    np.testing.assert_allclose(found[exact], expected[exact], rtol=0, atol=1e-9)


def test_at_quantile_one_every_calibration_image_is_exact():
    searched = random_adaptive(5)
    usage = observe(searched, images_for(searched, 8))[1]
    limits = limits_of(usage, searched.masked, 1.0)
    assert exact_images(usage, searched.masked, limits).all()
    counts = [int((block.tokens[:, 1:].sum(1) * block.runs).max()) for block in usage.blocks]
    assert all(capacity is None or capacity == count for capacity, count in zip(limits.capacities, counts, strict=True))
    assert any(capacity is not None for capacity in limits.capacities)


def test_an_image_beyond_a_capacity_or_against_a_settled_gate_is_not_exact():
    searched = random_adaptive(5)
    usage = observe(searched, images_for(searched, 8))[1]
    model, free = searched.masked, Limits((Settled(),) * 3, (None,) * 3)
    needed = usage.blocks[0].tokens[:, 1:].sum(1)
    tight = replace(free, capacities=(int(np.median(needed)), None, None))
    assert np.array_equal(exact_images(usage, model, tight), needed <= int(np.median(needed)))
    never = replace(free, settled=(Settled(), Settled(attention=False), Settled()))
    assert np.array_equal(exact_images(usage, model, never), ~usage.blocks[1].attention)


def test_limits_survive_json():
    limits = Limits((Settled(True, None, (None, False)), Settled()), (3, None))
    assert Limits.from_json(limits.to_json()) == limits


@pytest.mark.parametrize("quantile", [0.0, -1.0, 1.5, float("nan")])
def test_what_is_no_quantile_is_refused(quantile):
    searched = random_adaptive()
    with pytest.raises(OptionError, match="--capacity-quantile"):
        limits_of(observe(searched, images_for(searched))[1], searched.masked, quantile)


def test_an_image_for_which_everything_runs_executes_all_macs_and_others_what_they_run():
    searched = random_adaptive(7)
    model, usage = searched.masked, observe(searched, images_for(searched, 6))[1]
    macs = executed_macs(model, usage, CPU, conditional=True)
    everything = executed_macs(model, usage, CPU, conditional=False)
    assert set(everything.tolist()) == {count_macs(model, CPU)}
    runs = np.stack([np.stack([block.attention, block.mlp]) for block in usage.blocks]).sum((0, 1))
    assert ((macs == everything) == (runs == 6)).all()
    # Of the same width everywhere, a skipped FFN is worth its two products over all rows.
    skipped = [(~block.mlp).astype(int) for block in usage.blocks]
    attention = [(~block.attention).astype(int) for block in usage.blocks]
    ffn = 17 * 2 * 32 * 16
    mixing = 17 * 4 * 16 * 16 + 2 * 17 * 17 * 16
    assert np.array_equal(everything - macs, np.sum(skipped, 0) * ffn + np.sum(attention, 0) * mixing)


def test_the_macs_that_decisions_ask_for_never_exceed_what_any_way_executes():
    searched = random_adaptive(7)
    usage = observe(searched, images_for(searched, 6))[1]
    limits = limits_of(usage, searched.masked, 1.0)
    compiled = compile_model(searched.masked, limiting_passes(limits))
    needed = needed_macs(searched.masked, usage)
    assert (needed <= executed_macs(compiled, usage, CPU, conditional=True)).all()
    assert len(set(needed.tolist())) > 1


def test_usage_in_parts_is_the_usage_of_the_whole():
    searched = random_adaptive()
    images = images_for(searched, 4)
    whole = observe(searched, images)[1]
    parts = join([observe(searched, images[:1])[1], observe(searched, images[1:])[1]])
    for one, other in zip(whole.blocks, parts.blocks, strict=True):
        assert np.array_equal(one.tokens, other.tokens)
        assert np.array_equal(one.heads, other.heads)


def test_the_report_counts_what_was_used():
    searched = random_adaptive(3)
    usage = observe(searched, images_for(searched, 5))[1]
    found = report(usage, searched.masked, 1000)
    used = usage.blocks[1]
    assert (found.images, len(found.blocks), len(found.macs)) == (5, 3, 5)
    assert found.blocks[1].attention == pytest.approx(used.attention.mean())
    assert found.blocks[1].heads == pytest.approx(used.heads[used.runs].mean(0))
    assert np.mean(found.blocks[0].positions) == pytest.approx(found.blocks[0].patches)
    assert found.quantiles["0%"] == min(found.macs)
    assert found.mean_macs == pytest.approx(np.mean(found.macs))
