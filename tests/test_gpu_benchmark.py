"""The benchmark on a GPU, as far as a CPU can tell: its networks compute what they should, and it runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import slimc
from benchmarks.contestants import AT_EVERY_BUDGET, BASELINE, EXACT, ONCE
from benchmarks.twin import uniform_twin
from slimc import ir
from slimc.targets.count import count_macs
from tests.artefacts import VECTORS

ROOT = Path(__file__).parents[1]


def test_the_twin_has_about_as_many_macs_in_blocks_that_are_all_alike():
    searched = slimc.load(VECTORS["digits"])
    wanted = count_macs(searched.dense, slimc.find_target("generic")) * 0.7
    twin = uniform_twin(searched.dense, int(wanted))
    assert count_macs(twin, slimc.find_target("generic")) == pytest.approx(wanted, rel=0.15)
    widths = {len(block.mlp.up.weight) for block in twin.blocks if isinstance(block.mlp, ir.Mlp)}
    assert len(widths) == 1


def test_it_runs_on_a_cpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--output", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    rows = json.loads((tmp_path / "latency.json").read_text())
    assert [row["model"] for row in rows] == [*ONCE, *AT_EVERY_BUDGET]
    for row in rows:
        assert row.get("error") is None
        assert row["difference"] < 1e-4
        assert row["milliseconds"] > 0
        assert row.get("float64_error", 0.0) <= EXACT
    assert {row["model"] for row in rows if "float64_error" in row} == {BASELINE, *AT_EVERY_BUDGET}
    assert "| one group | 0.7 |" in (tmp_path / "results.md").read_text()
