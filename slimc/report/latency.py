"""The picture of a benchmark: median latencies with the span from the fastest to the 90th percentile."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slimc.evaluate.latency import Measurement
from slimc.report import drawing
from slimc.report.drawing import KEPT, PlotOptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FILLS: Mapping[str, Mapping[str, Any]] = {
    "dense": {"facecolor": "0.86", "edgecolor": "0.4"},
    "masked": {"facecolor": "white", "edgecolor": "0.4", "hatch": "////"},
    "slim": {"facecolor": KEPT, "edgecolor": KEPT},
}
_LINE = 0.12  # inches that a line of a label takes
_GAP = 0.09  # inches between rows
_LETTERS = 46  # of a line


def plot_latencies(measurements: Sequence[Measurement], path: Path, options: PlotOptions | None = None) -> None:
    """Draw one bar a subject to `path`, with its median and that over the first subject's beside it.

    The ratio is the median over the rounds of the ratio within a round, so that it bears disturbance that both met.
    `options.panels` has no meaning here.

    Raises:
        OptionError: a size that the labels do not fit.
        MissingError: matplotlib is not installed.
        OutputError: `path` cannot be written.
    """
    labels = [label(measurement) for measurement in measurements]
    lines = max(text.count("\n") + 1 for text in labels)
    size = (drawing.PAGE, 0.85 + len(labels) * (lines * _LINE + _GAP))
    with drawing.picture(path, options or PlotOptions(), size) as figure:
        drawing.headline(figure, f"latency (in brackets: over that of {labels[0].splitlines()[0]})")
        axes = figure.add_subplot()
        _bars(axes, measurements)
        axes.set_yticks(range(len(labels)), labels)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlabel("milliseconds: median, with the fastest and the 90th percentile")


def label(measurement: Measurement) -> str:
    """What was timed in the first line, and in the second what ran it, in which precision, on how many threads."""
    subject = measurement.subject
    name, _, backend = subject.name.partition(" [")
    threads = "" if subject.threads is None else f"{subject.threads} thread{'s' if subject.threads > 1 else ''}"
    backend = backend.removesuffix("]")
    precision = "" if backend.endswith(("f32", "bf16")) else subject.precision  # OpenVINO's own counts
    facts = ", ".join(filter(None, (backend, precision, threads)))
    return "\n".join(line for text in (name, facts) for line in textwrap.wrap(text, _LETTERS))


def _bars(axes: Axes, measurements: Sequence[Measurement]) -> None:
    """Bars, whiskers, and behind these the figures."""
    medians = np.array([m.median for m in measurements]) * 1e3
    lows = medians - np.array([m.latencies.min() for m in measurements]) * 1e3
    highs = np.maximum(np.array([m.percentile(90) for m in measurements]) * 1e3 - medians, 0.0)
    for row, m in enumerate(measurements):
        axes.barh(row, medians[row], height=0.62, linewidth=0.6, **_FILLS.get(m.subject.variant, _FILLS["slim"]))
    rows = np.arange(len(measurements))
    axes.errorbar(medians, rows, xerr=[lows, highs], fmt="none", ecolor="black", elinewidth=0.7, capsize=2)
    for row, m in enumerate(measurements):
        ratio = float(np.median(m.rounds / measurements[0].rounds))
        digits = int(np.clip(2 - np.floor(np.log10(medians[row])), 0, 3))
        text = f"{medians[row]:.{digits}f} ms ({ratio:.2f})"
        place = (medians[row] + highs[row], row)
        axes.annotate(text, place, (4, 0), textcoords="offset points", va="center_baseline", fontsize=6.5)
    axes.set_xlim(0, 1.25 * float((medians + highs).max()))
