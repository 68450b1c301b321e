"""timm's plain vision transformers as artefacts: ONNX models against timm's own outputs, engines with fused attention.

All of them take minutes and are marked slow; one of every family runs always. `python -m benchmarks.families` makes the
table in the README of the same checks.
"""

from typing import Any

import pytest

from benchmarks.families import check, family_of, table
from tests.models.timm_networks import entry_points

ONE_EACH = sorted({family_of(name): name for name in entry_points()}.values())
BOUND = 2e-5


def assert_good(name: str, *, engines: bool) -> None:
    row = check(name, engines=engines)
    if row.refused is not None:
        pytest.skip(row.refused)
    assert row.error is not None
    assert row.error <= BOUND
    if row.fused is not None:
        fused, attentions = row.fused
        assert attentions > 0
        assert fused == attentions or row.lost


@pytest.mark.parametrize("name", ONE_EACH)
def test_one_of_every_family_is_as_timm_computes_it_in_onnx_runtime(name):
    assert_good(name, engines=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", entry_points())
def test_every_entry_point_is_as_timm_computes_it_and_fuses_its_attentions(name):
    pytest.importorskip("tensorrt_rtx")
    assert_good(name, engines=True)


def test_the_table_has_a_line_a_family_and_says_why_one_is_missing():
    rows: list[dict[str, Any]] = [
        {"name": "a", "family": "A", "refused": None, "error": 1e-6, "fused": (3, 4), "masks": ["heads", "v"]},
        {"name": "b", "family": "A", "refused": None, "error": 2e-6, "fused": (4, 4), "masks": ["heads"]},
        {"name": "c", "family": "B", "refused": "is a Thing", "error": None, "fused": None, "masks": []},
    ]
    assert table(rows).splitlines()[2:] == [
        "| A | 2 of 2 | 2e-06 | 7 of 8 | heads, v (not all) |",
        "| B | 0 of 1: is a Thing | | | |",
    ]
