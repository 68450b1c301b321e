"""Pictures: latency against arithmetic, and what compiling costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.compile import ONNXSLIM, SLIMC, TORCH, UNVERIFIED
from benchmarks.store import Row
from slimc.files.output import replacing
from slimc.report.structure import pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MODELS = {
    "slim": ("#1f77b4", "o"),
    "regular twin": ("#2ca02c", "s"),
    "Torch-Pruning": ("#d62728", "^"),
    "masked": ("#c9a227", "v"),
}
_WAYS = {
    SLIMC: ("#1f77b4", "o", "-"),
    UNVERIFIED: ("#1f77b4", "o", ":"),
    TORCH: ("#8c8c8c", "s", "-"),
    ONNXSLIM: ("#d62728", "^", "-"),
}

_TOP = 1.4  # only a machine that is busy with other things makes the masked network slower than that


def plot_latency(rows: Sequence[Row], path: Path) -> None:
    """A panel for every engine and number of threads: latency over that of timm's dense network, by case."""
    panels = sorted({(row["engine"], row["threads"]) for row in rows})
    cases = list(dict.fromkeys(_case(row) for row in rows))
    plt = pyplot()
    size = (max(6.5, 2 + 0.8 * len(cases)), 2.4 * len(panels) + 0.6)
    figure, grid = plt.subplots(len(panels), 1, figsize=size, sharex=True, squeeze=False, layout="constrained")
    for (engine, threads), axes in zip(panels, grid[:, 0], strict=True):
        chosen = [row for row in rows if (row["engine"], row["threads"]) == (engine, threads)]
        _latencies(axes, chosen, cases)
        axes.set_title(f"{engine}, {threads} thread{'s' if threads > 1 else ''}", fontsize=10)
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), fontsize=8, ncols=len(_MODELS) + 1, loc="outside upper center"
    )
    labels = [f"{system}\n{size}, {budget}\nbatch {batch}" for system, size, budget, batch in cases]
    grid[-1, 0].set_xticks(range(len(cases)), labels, fontsize=8)
    figure.supylabel("latency, timm's dense export = 1", fontsize=10)
    _save(plt, figure, path)


def _latencies(axes: Axes, rows: Sequence[Row], cases: Sequence[tuple[Any, ...]]) -> None:
    """Points with quartiles, and a bar where the arithmetic would put the slim network."""
    slim = {_case(row): float(row["macs_ratio"]) for row in rows if row["model"] == "slim"}
    positions = [cases.index(case) for case in slim]
    axes.bar(positions, list(slim.values()), width=0.7, color="0.88", label="MACs of slim")
    for i, (model, (colour, marker)) in enumerate(_MODELS.items()):
        chosen = [row for row in rows if row["model"] == model]
        if chosen:
            x = [cases.index(_case(row)) + 0.15 * (i - 1.5) for row in chosen]
            middles = [float(row["ratio"]) for row in chosen]
            below = [float(row["ratio"] - row["low"]) for row in chosen]
            above = [float(row["high"] - row["ratio"]) for row in chosen]
            axes.errorbar(x, middles, [below, above], fmt=marker, color=colour, markersize=5, capsize=2, label=model)
    axes.axhline(1.0, color="0.4", linewidth=0.8)
    axes.set_ylim(0, _TOP)


def plot_compile(rows: Sequence[Row], path: Path) -> None:
    """Seconds and peak memory of every way over the size of the checkpoint."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for way, (colour, marker, line) in _WAYS.items():
        chosen = [row for row in rows if row["way"] == way]
        sizes = [float(row["checkpoint_mb"]) for row in chosen]
        style = {"color": colour, "marker": marker, "linestyle": line, "label": way}
        left.plot(sizes, [row["seconds"] for row in chosen], **style)
        right.plot(sizes, [row["peak_mb"] / 1024 for row in chosen], **style)
    right.axhline(rows[0]["import_peak_mb"] / 1024, color="0.7", linestyle=":", label="imports alone")
    for axes, label in ((left, "seconds, whole process"), (right, "peak memory, GB")):
        axes.set_xlabel("checkpoint, MB")
        axes.set_ylabel(label)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    last = 0.0
    for row in rows:
        place = float(row["checkpoint_mb"])
        if row["way"] == SLIMC and place - last > 0.08 * left.get_xlim()[1]:  # the smallest would lie over each other
            left.annotate(row["size"], (place, row["seconds"]), (0, 6), textcoords="offset points", fontsize=8)
            last = place
    figure.legend(*right.get_legend_handles_labels(), fontsize=8, ncols=3, loc="outside upper center")
    _save(plt, figure, path)


def _case(row: Row) -> tuple[Any, ...]:
    return row["system"], row["size"], row["budget"], row["batch_size"]


def _save(plt: Any, figure: Any, path: Path) -> None:
    with replacing(path) as (temporary,):
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
