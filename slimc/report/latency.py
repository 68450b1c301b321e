"""The picture of a benchmark: median latencies with the span from the fastest to the 90th percentile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slimc.evaluate.latency import Measurement
from slimc.files.output import replacing
from slimc.report.structure import pyplot

_COLOURS = {"dense": "#8c8c8c", "masked": "#c9a227", "slim": "#1f77b4"}


def plot_latencies(measurements: Sequence[Measurement], path: Path) -> None:
    """Draw one bar a subject to `path`."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.5 * len(measurements)), layout="constrained")
    medians = np.array([m.median for m in measurements]) * 1e3
    lows = medians - np.array([m.latencies.min() for m in measurements]) * 1e3
    highs = np.array([m.percentile(90) for m in measurements]) * 1e3 - medians
    colours = [_COLOURS.get(m.subject.variant, "#1f77b4") for m in measurements]
    rows = np.arange(len(measurements))
    axes.barh(rows, medians, xerr=[lows, highs], color=colours, capsize=3)
    axes.set_yticks(rows, [m.subject.name for m in measurements])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds an inference: median, fastest to 90th percentile")
    with replacing(path) as (temporary,):
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
