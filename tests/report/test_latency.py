"""The picture of a benchmark: labels, figures beside the bars, any number of rows."""

from itertools import combinations

import numpy as np
import pytest

from slimc.compiler.variants import BenchOptions, subjects
from slimc.evaluate.latency import Measurement, Subject, measure
from slimc.evaluate.progress import silent
from slimc.report.drawing import PlotOptions
from slimc.report.latency import label, plot_latencies
from tests.artefacts import VECTORS
from tests.report.figures import bars, drawn, overlap, smallest, texts, words


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[Subject]:
    options = BenchOptions(backends=("onnxruntime",), threads=1)
    return subjects([VECTORS["channel"]], options, tmp_path_factory.mktemp("bench"), silent)


def timed(subject: Subject, milliseconds: float, number: int = 0) -> Measurement:
    """A measurement as if it had been taken, about as noisy as real ones."""
    times = milliseconds / 1e3 * (1 + 0.2 * np.random.default_rng(number).random(50))
    return Measurement(subject, times, times, None)


def test_labels_tell_precision_and_threads(found):
    lines = label(timed(found[0], 1.0)).split("\n")
    assert lines[0] == "checkpoint dense, batch 1"
    assert lines[1].startswith("onnxruntime ")
    assert lines[1].endswith(" cpu, fp32, 1 thread")


def test_a_measured_benchmark_is_drawn(found, tmp_path):
    measurements = measure(found, 0.01)
    figure = drawn(lambda: plot_latencies(measurements, tmp_path / "p.pdf"))
    assert b"/Type3" not in (tmp_path / "p.pdf").read_bytes()
    assert len(bars(figure)) == 3
    slim = np.median(measurements[2].rounds / measurements[0].rounds)
    assert any(text.endswith(f" ms ({slim:.2f})") for text in words(figure))


@pytest.mark.parametrize(
    ("milliseconds", "text"), [(0.25, "0.250 ms"), (2.5, "2.50 ms"), (25, "25.0 ms"), (250, "250 ms")]
)
def test_milliseconds_have_three_digits(found, milliseconds, text, tmp_path):
    times = np.full(3, milliseconds / 1e3)
    measurement = Measurement(found[0], times, times, None)
    figure = drawn(lambda: plot_latencies([measurement], tmp_path / "p.png"))
    assert f"{text} (1.00)" in words(figure)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_any_number_of_rows_can_be_read(found, rows, tmp_path):
    measurements = [timed(found[i % 3], 1 + i, i) for i in range(rows)]
    figure = drawn(lambda: plot_latencies(measurements, tmp_path / "p.png"))
    shown, written = bars(figure), [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    assert len(shown) == rows
    assert sum(text.count("fp32") for text, _ in written) == rows
    for text, box in written:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
        assert not any(overlap(box, bar) for bar in shown), text
    assert not [pair for pair in combinations(written, 2) if overlap(pair[0][1], pair[1][1], 3)]
    assert smallest(texts(figure)) >= 6


def test_the_same_measurements_give_the_same_bytes(found, tmp_path):
    measurements = [timed(subject, 2.0, i) for i, subject in enumerate(found)]
    for name in ("a.svg", "b.svg"):
        plot_latencies(measurements, tmp_path / name, PlotOptions(size=(8, 3)))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
