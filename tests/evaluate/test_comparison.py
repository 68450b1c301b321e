"""Every output is measured in its own spread, all of them decide, and the worst is told."""

import numpy as np
import pytest

from slimc.errors import MismatchError, ModelFileError
from slimc.evaluate import difference
from slimc.evaluate.comparison import compare_outputs, mismatch
from slimc.evaluate.difference import differ

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.standard_normal((4, 20)).astype(np.float32) * 3 + 7
TOKENS = RANDOM.standard_normal((4, 6, 20)).astype(np.float32) * np.float32(0.5)
MAPS = np.ascontiguousarray(TOKENS.transpose(0, 2, 1).reshape(4, 20, 2, 3))
LOGITS = RANDOM.standard_normal((4, 5)).astype(np.float32)
EXPECTED = {"logits": LOGITS, "features": FEATURES, "tokens": TOKENS}


def test_features_are_measured_over_their_channels():
    actual = FEATURES.copy()
    actual[2, 7] += 0.5
    found = differ("features", actual, FEATURES, 0.1)
    spread = np.sqrt(np.mean([np.var(row) for row in FEATURES.astype(np.float64)]))
    assert found.max_rel == pytest.approx(0.5 / spread, rel=1e-5)
    rows = zip(actual.astype(np.float64), FEATURES.astype(np.float64), strict=True)
    assert found.cosine == pytest.approx(min(a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in rows))
    assert (found.inputs, found.shape, found.worst_input) == (4, (20,), 2)
    assert found.unit == "the spread of features"
    assert not found.passed


def test_tokens_are_measured_over_their_channels_row_by_row_whatever_their_layout():
    actual = TOKENS.copy()
    actual[1, 3] *= -1
    found = differ("tokens", actual, TOKENS, 0.1)
    maps = differ("tokens:nchw", np.ascontiguousarray(actual.transpose(0, 2, 1).reshape(4, 20, 2, 3)), MAPS, 0.1)
    spread = np.sqrt(np.mean(np.var(TOKENS.astype(np.float64), axis=2)))
    for each in (found, maps):
        assert each.spread == pytest.approx(spread)
        assert each.max_abs == pytest.approx(2 * np.abs(TOKENS[1, 3]).max(), rel=1e-6)
        assert each.cosine == pytest.approx(-1.0), "of the row that was turned round, not of the image"
        assert each.worst_input == 1
    assert (found.shape, maps.shape) == ((6, 20), (20, 2, 3))


def test_chunks_make_no_difference(monkeypatch):
    actual = TOKENS + RANDOM.standard_normal(TOKENS.shape).astype(np.float32) * np.float32(1e-3)
    whole = differ("tokens", actual, TOKENS, 0.1)
    monkeypatch.setattr(difference, "_CHUNK", 1)
    parts = differ("tokens", actual, TOKENS, 0.1)
    for name in ("spread", "max_abs", "mean_abs", "p99_abs", "cosine", "worst_input"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12)
    np.testing.assert_array_equal(parts.worst_of_input, whole.worst_of_input)


def test_rows_of_zeros_are_alike():
    zeros = TOKENS.copy()
    zeros[0, 0] = 0
    assert differ("tokens", zeros, zeros, 0.0).cosine == pytest.approx(1.0)
    assert differ("tokens", TOKENS, zeros, 0.0).cosine == 0.0


def test_what_cannot_be_compared_is_told_by_its_name():
    with pytest.raises(
        ModelFileError, match=r"tokens \[4, 6, 20\] cannot be compared with a reference \[4, 20, 2, 3\]"
    ):
        differ("tokens", TOKENS, MAPS, 1.0)
    with pytest.raises(ModelFileError, match="all channels of features are the same"):
        differ("features", FEATURES, np.ones_like(FEATURES), 1.0)
    broken = TOKENS.copy()
    broken[3, 2, 1] = np.nan
    with pytest.raises(MismatchError, match="NaN or infinite tokens for 1 of 4 inputs, first input 3"):
        differ("tokens", broken, TOKENS, 1.0)


class TestAll:
    def test_the_worst_is_reported_and_the_logits_decide(self):
        actual = {name: values.copy() for name, values in EXPECTED.items()}
        actual["logits"] += np.float32(1e-6) * LOGITS
        actual["tokens"][2, 5, 3] += 0.25
        found = compare_outputs(actual, EXPECTED, 0.1)
        assert [each.output for each in found.outputs] == ["logits", "features", "tokens"]
        assert [each.passed for each in found.outputs] == [True, True, False]
        assert not found.passed
        assert (found.worst.output, found.worst_input) == ("tokens", 2)
        assert found.max_abs == pytest.approx(0.25, rel=1e-5)
        assert (found.classes, found.top1_agreement) == (5, 1.0)
        assert mismatch(found) == f"{found.max_rel:.2e} of the spread of tokens"
        assert found.numbered(np.array([1, 3, 8, 9])).worst_input == 8

    def test_any_of_them_may_fail(self):
        for name, values in EXPECTED.items():
            actual = {**EXPECTED, name: values * np.float32(1.5)}
            found = compare_outputs(actual, EXPECTED, 1e-2)
            assert [each.output for each in found.outputs if not each.passed] == [name]

    def test_without_logits_nothing_is_said_of_decisions(self):
        found = compare_outputs({"features": FEATURES}, {"features": FEATURES}, 0.0)
        assert found.passed
        assert found.logits is None
        with pytest.raises(AttributeError, match="only logits decide anything, and there are none among features"):
            _ = found.top1_agreement

    def test_other_outputs_than_expected_belong_to_another_model(self):
        for actual in ({"logits": LOGITS}, {**EXPECTED, "blocks.1": TOKENS}):
            with pytest.raises(ModelFileError, match="it belongs to another model"):
                compare_outputs(actual, EXPECTED, 1.0)
