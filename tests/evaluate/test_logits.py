"""A comparison measures what it says, and never passes without having compared anything."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimc.errors import MismatchError, ModelFileError
from slimc.evaluate.logits import compare

EXPECTED = np.random.default_rng(0).standard_normal((4, 20)).astype(np.float32)


def test_equal_logits_pass_at_tolerance_zero():
    result = compare(EXPECTED, EXPECTED, 0.0)
    assert result.passed
    assert (result.max_abs, result.top1_agreement, result.top5_agreement) == (0.0, 1.0, 1.0)
    assert result.cosine == pytest.approx(1.0)
    assert result.clear == 4
    assert (result.inputs, result.classes) == (4, 20)


def test_the_worst_input_is_named_and_the_difference_is_measured_in_the_spread():
    actual = EXPECTED.copy()
    actual[2, 7] += 0.5
    result = compare(actual, EXPECTED, 0.1)
    spread = np.sqrt(np.mean([np.var(row) for row in EXPECTED.astype(np.float64)]))
    assert result.worst_input == 2
    assert result.max_abs == pytest.approx(0.5, abs=1e-6)
    assert result.max_rel == pytest.approx(0.5 / spread, abs=1e-6)
    np.testing.assert_allclose(result.worst_of_input, [0, 0, 0.5, 0], atol=1e-6)
    assert not result.passed
    assert compare(actual, EXPECTED, 0.6).passed


@settings(max_examples=30)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), seed=st.integers(0, 99))
def test_the_verdict_depends_neither_on_scale_nor_on_what_all_logits_share(scale, shift, seed):
    expected = EXPECTED.astype(np.float64)
    actual = expected + 1e-3 * np.random.default_rng(seed).standard_normal(expected.shape)
    plain = compare(actual, expected, 1.0).max_rel
    changed = compare(actual * scale + shift, expected * scale + shift, 1.0).max_rel
    assert changed == pytest.approx(plain, rel=1e-6)


def test_agreement_counts_the_inputs_and_the_clear_ones_apart():
    expected = np.array([[3.0, 0.0, 0.0], [1.0, 0.9, 0.0]])
    actual = np.array([[3.0, 0.0, 0.0], [0.9, 1.0, 0.0]])
    result = compare(actual, expected, 1.0)
    assert result.top1_agreement == 0.5
    assert result.margin == pytest.approx(0.1)
    assert (result.clear, result.clear_agreement) == (1, 1.0)


def test_top5_counts_what_is_shared():
    expected = np.arange(10.0)[None]
    actual = expected.copy()
    actual[0, 9] = -1.0
    assert compare(actual, expected, 10.0).top5_agreement == pytest.approx(0.8)


def test_an_empty_comparison_fails():
    with pytest.raises(MismatchError, match="nothing was compared"):
        compare(EXPECTED[:0], EXPECTED[:0], 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_fail_and_name_the_input(value):
    actual = EXPECTED.copy()
    actual[1, 3] = value
    with pytest.raises(MismatchError, match="1 of 4 inputs, first input 1"):
        compare(actual, EXPECTED, 1e9)
    with pytest.raises(ModelFileError, match="NaN or infinite"):
        compare(EXPECTED, actual, 1e9)


def test_other_shapes_and_flat_references_are_refused():
    with pytest.raises(ModelFileError, match="belongs to another model"):
        compare(EXPECTED[:, :10], EXPECTED, 1.0)
    with pytest.raises(ModelFileError, match="all outputs of every input are 1, as of a head"):
        compare(EXPECTED, np.ones_like(EXPECTED), 1.0)


@pytest.mark.parametrize("tolerance", [np.nan, np.inf, -1.0])
def test_a_tolerance_that_cannot_fail_is_refused(tolerance):
    with pytest.raises(ModelFileError, match="tolerance"):
        compare(EXPECTED, EXPECTED, tolerance)


def test_one_output_is_measured_across_inputs_and_decides_by_its_sign():
    expected = np.array([[-2.0], [-0.5], [0.5], [2.0]])
    found = compare(expected + np.array([[0.0], [0.0], [-0.6], [0.0]]), expected, 0.1)
    assert found.spread == pytest.approx(expected.std())
    assert found.max_rel == pytest.approx(0.6 / expected.std())
    assert (found.passed, found.top1_agreement, found.worst_input) == (False, 0.75, 2)
    assert found.margin == pytest.approx(0.5)
    assert (found.clear, found.clear_agreement) == (2, 1.0)
    assert compare(expected, expected, 1e-6).passed


def test_a_head_that_was_never_trained_gets_a_clear_line():
    with pytest.raises(ModelFileError, match=r"all outputs of every input are 0, .* or export with --no-verify"):
        compare(np.zeros((4, 1)), np.zeros((4, 1)), 1e-4)
