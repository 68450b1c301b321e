"""The arithmetic of a benchmark, on sessions whose times are known; and real runs, of which only the form is tested."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from slimc.backends.base import TensorSpec, Timing
from slimc.backends.cuda import gpu_missing
from slimc.compiler.variants import BenchOptions, subjects
from slimc.errors import MissingError, OptionError
from slimc.evaluate.latency import Measurement, Subject, measure, ratio, realised, warnings
from slimc.evaluate.progress import silent
from slimc.ir import FloatArray
from tests.artefacts import VECTORS, exported


@dataclass(frozen=True)
class Clockwork:
    """A session that takes as long as it is told, and writes down whose turn it was."""

    name: str
    latency: float
    turns: list[str] = field(default_factory=list)
    backend: str = "clockwork"
    inputs: tuple[TensorSpec, ...] = (TensorSpec("images", (2, 3, 4, 4), "float32"),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("logits", (2, 10), "float32"),)

    def run(self, feeds):
        return {"logits": np.zeros((2, 10), np.float32)}

    def timer(self, feeds):
        assert feeds["images"].shape == (2, 3, 4, 4)

        def once() -> Timing:
            self.turns.append(self.name)
            return Timing(self.latency)

        return once


def measured(
    name: str = "net",
    latencies: Sequence[float] | FloatArray = (1.0,),
    *,
    variant: str = "",
    macs: int | None = None,
    enqueue: float | None = None,
) -> Measurement:
    """A measurement as if it had been taken."""
    subject = Subject(name, Clockwork(name, 1.0), "family" if variant else "", variant, macs)
    times = np.array(latencies, np.float64)
    return Measurement(subject, times, times, enqueue)


def test_figures_are_those_of_the_latencies():
    found = measured(latencies=np.arange(1, 101) / 1e3)
    assert found.median == pytest.approx(0.0505)
    assert found.percentile(90) == pytest.approx(0.0901)
    assert found.throughput == pytest.approx(2 / 0.0505)
    assert found.variation == pytest.approx(np.arange(1, 101).std() / 50.5)
    assert found.summary(found)["min_ms"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("runs", "p90", "p99"), [(9, False, False), (10, True, False), (99, True, False), (100, True, True)]
)
def test_a_percentile_is_told_once_a_run_beyond_it_is_to_be_expected(runs, p90, p99):
    found = measured(latencies=np.arange(1, runs + 1) / 1e3)
    assert (found.tail(90) is not None, found.tail(99) is not None) == (p90, p99)
    summary = found.summary(found)
    assert (summary["p90_ms"] is not None, summary["p99_ms"] is not None) == (p90, p99)


def test_rounds_are_interleaved_and_begin_with_another_each_time():
    turns: list[str] = []
    nets = [Subject(name, Clockwork(name, 0.04, turns)) for name in "ab"]
    found = measure(nets, 0.05)
    rounds = len(found[0].rounds)
    assert rounds == len(found[1].rounds) > 4
    assert "".join(turns[-4 * rounds :]) == "".join("bbaa" if number % 2 else "aabb" for number in range(rounds))
    assert all(m.median == pytest.approx(0.04) for m in found)


def test_a_ratio_is_taken_within_rounds():
    slow, fast = measured(latencies=[2.0, 40.0, 6.0]), measured(latencies=[1.0, 20.0, 3.0])
    assert ratio(slow, fast).median == pytest.approx(2.0)
    assert ratio(slow, fast).low == pytest.approx(2.0)


def test_the_realised_share_of_a_cut():
    dense, slim = (
        measured(latencies=[4.0], variant="dense", macs=100),
        measured(latencies=[3.0], variant="slim", macs=50),
    )
    (found,) = realised([dense, slim, measured()])
    assert found.share == pytest.approx(0.5)
    assert found.speedup.median == pytest.approx(4 / 3)
    assert found.macs_ratio == pytest.approx(0.5)
    (uncut,) = realised([dense, measured(latencies=[3.0], variant="slim", macs=100)])
    assert uncut.share is None
    assert realised([dense]) == []


def test_doubtful_figures_are_told():
    assert warnings([measured(latencies=[1.0, 1.01])]) == []
    assert "noisy" in warnings([measured(latencies=[1.0, 2.0])])[0]
    assert "lock the clocks" in warnings([measured(latencies=[1.0, 1.1], enqueue=0.1)])[0]
    assert "host limits it" in warnings([measured(latencies=[1.0, 1.0], enqueue=0.9)])[0]


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_no_time_measures_nothing(seconds):
    with pytest.raises(OptionError, match="--seconds"):
        measure([Subject("a", Clockwork("a", 1.0))], seconds)
    with pytest.raises(OptionError, match="nothing to time"):
        measure([], 1.0)


def test_a_checkpoint_is_compared_with_itself(tmp_path):
    options = BenchOptions(backends=("onnxruntime",), threads=1, batch_sizes=(1, 2))
    found = subjects([VECTORS["channel"]], options, tmp_path, silent)
    assert [(s.variant, s.batch_size) for s in found] == [
        (variant, size) for size in (1, 2) for variant in ("dense", "masked", "slim")
    ]
    dense, masked, slim = found[:3]
    assert dense.macs is not None
    assert masked.macs == dense.macs
    assert slim.macs is not None
    assert slim.macs < dense.macs
    shares = realised(measure(found, 0.01, min_rounds=2))
    assert len(shares) == 2
    assert all(share.share is not None and np.isfinite(share.share) for share in shares)


@pytest.mark.skipif(gpu_missing() is None, reason="this machine has a GPU")
def test_engines_that_cannot_be_timed_here_are_not_built_first(tmp_path):
    with pytest.raises(MissingError, match="running an engine needs a GPU"):
        subjects([tmp_path / "not.even.there"], BenchOptions(backends=("tensorrt-rtx",)), tmp_path, silent)


def test_artefacts_run_as_they_are_and_know_what_they_came_from(tmp_path):
    path = exported("channel", tmp_path, batch_size=2)
    (found,) = subjects([path], BenchOptions(backends=("auto",)), tmp_path, silent)
    assert (found.variant, found.batch_size) == ("slim", 2)
    assert found.macs is not None
    with pytest.raises(OptionError, match=r"--batch-size: .* is compiled already"):
        subjects([path], BenchOptions(batch_sizes=(4,)), tmp_path, silent)
