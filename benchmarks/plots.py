"""Pictures: latency against arithmetic, and what compiling costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.compile import ONNXSLIM, SLIMC, TORCH, UNVERIFIED
from benchmarks.store import Row
from slimc.report import drawing
from slimc.report.drawing import DARK, KEPT, OTHER, PALE, PlotOptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_NAMES = {
    "deit-t": "DeiT-T",
    "deit-s": "DeiT-S",
    "deit-b": "DeiT-B",
    "vit-l": "ViT-L",
    "vit-h": "ViT-H",
    "lvvit-s": "LV-ViT-S",
}
_FILLS: dict[str, dict[str, Any]] = {
    "slim": {"facecolor": DARK, "edgecolor": DARK},
    "regular twin": {"facecolor": PALE, "edgecolor": PALE},
    "Torch-Pruning": {"facecolor": OTHER, "edgecolor": OTHER},
    "masked": {"facecolor": "white", "edgecolor": "0.45", "hatch": "/////"},
}
_LABELS = {
    "slim": "slim (slimc)",
    "regular twin": "twin with heads of one width",
    "Torch-Pruning": "Torch-Pruning",
    "masked": "masked, as research code runs it",
}
_LINE = "MACs kept by the masks"
_MACS: dict[str, Any] = {"color": "black", "linewidth": 1.4, "solid_capstyle": "butt"}
_MARKERS = {"slim": "o", "regular twin": "s", "Torch-Pruning": "^", "masked": "v"}
_WAYS: dict[str, dict[str, Any]] = {
    SLIMC: {"color": DARK, "marker": "o", "linestyle": "-"},
    UNVERIFIED: {"color": KEPT, "marker": "o", "linestyle": ":", "markerfacecolor": "white"},
    TORCH: {"color": "0.5", "marker": "s", "linestyle": "-"},
    ONNXSLIM: {"color": OTHER, "marker": "^", "linestyle": "-"},
}
_README = 8.3  # inches, which GitHub shows as 830 pixels: a point is 1.4 of them
_STYLE = {"font.size": 8, "xtick.labelsize": 8, "ytick.labelsize": 7.5, "legend.fontsize": 8, "axes.titlesize": 9}


def plot_latency(rows: Sequence[Row], path: Path) -> None:
    """The picture of the README: one image at budgets of 0.7, a panel for every engine and number of threads.

    A black line is where a network would be if the whole MAC cut became latency.
    """
    chosen = [row for row in rows if row["budget"] == 0.7 and row["batch_size"] == 1]
    panels = sorted({(row["engine"], row["threads"]) for row in chosen})
    lines = len(panels) // 2 + len(panels) % 2
    with _picture(path, _README, 5.35) as figure:
        grid = figure.subplots(lines, 2, sharey=True, squeeze=False)
        for (engine, threads), axes in zip(panels, grid.flat, strict=False):
            _bars(axes, [row for row in chosen if (row["engine"], row["threads"]) == (engine, threads)])
            axes.set_title(_panel_title(engine, threads), loc="left")
        for axes in grid[:, 0]:
            axes.set_ylabel("latency, timm's dense = 1")
        figure.supxlabel(_note(chosen), x=0.01, ha="left", fontsize=7.5, color="0.25")
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        _legend(
            figure, grid[0, 0], "How much of the MAC cut becomes latency (one image; budgets and keep rates of 0.7)"
        )


def _note(rows: Sequence[Row]) -> str:
    """What the percentages are, and what is missing."""
    notes = ["Per cent: the share of the MAC cut that became latency."]
    if any(row["model"] != "timm dense" and row["system"] == "DynamicViT" and row["size"] == "lvvit-s" for row in rows):
        notes.append("* over slimc's own dense export: timm has no LV-ViT.")
    missing = {row["engine"] for row in rows} - {row["engine"] for row in rows if row["model"] == "masked"}
    notes += [f"Masked was not timed with {ENGINES[engine]}." for engine in sorted(missing)]
    return " ".join(notes)


def _bars(axes: Axes, rows: Sequence[Row]) -> None:
    """Bars of every network side by side, the line of its MACs over them, and the realised share below its name."""
    cases = list(dict.fromkeys((row["system"], row["size"]) for row in rows))
    width = 0.19
    labels = []
    for place, case in enumerate(cases):
        models = {row["model"]: row for row in rows if (row["system"], row["size"]) == case}
        shown = [name for name in _FILLS if name in models]
        left = place - width * len(shown) / 2
        for i, name in enumerate(shown):
            style = {"width": 0.85 * width, "linewidth": 0.6, "label": _LABELS[name], **_FILLS[name]}
            axes.bar(left + width * (i + 0.5), models[name]["ratio"], **style)
        macs = least_macs(models["slim"])
        ends = left - 0.06, left + width * len(shown) + 0.06
        axes.plot(ends, [macs, macs], label=_LINE, **_MACS)
        foreign = "" if "timm dense" in models else "*"
        labels.append(f"{_name(*case)}{foreign}\n{models['slim']['share'] * 100:.0f} %")
    axes.axhline(1.0, color="0.4", linewidth=0.7, linestyle="--", zorder=0)
    axes.set_xticks(range(len(cases)), labels)
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, 1.12)
    axes.set_xlim(-0.5, len(cases) - 0.5)


def least_macs(slim: Row) -> float:
    """The fewest MACs that the masks allow over the dense network's: what the realised share of `slim` is counted by."""
    return 1 - (1 - float(slim["ratio"])) / float(slim["share"]) if slim["share"] else float(slim["macs_ratio"])


def plot_all_latencies(rows: Sequence[Row], path: Path) -> None:
    """Every case that was measured: points with quartiles, a panel for every engine and number of threads."""
    panels = sorted({(row["engine"], row["threads"]) for row in rows})
    cases = list(dict.fromkeys(_case(row) for row in rows))
    with _picture(path, max(6.5, 1.2 + 0.72 * len(cases)), 2.0 * len(panels) + 1.0) as figure:
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for (engine, threads), axes in zip(panels, grid, strict=True):
            chosen = [row for row in rows if (row["engine"], row["threads"]) == (engine, threads)]
            _points(axes, chosen, cases)
            axes.set_title(_panel_title(engine, threads), loc="left")
        labels = [f"{_name(system, size)}\n{budget}, batch {batch}" for system, size, budget, batch in cases]
        grid[-1].set_xticks(range(len(cases)), labels)
        figure.supylabel("latency, timm's dense export = 1", fontsize=8)
        _legend(figure, grid[0], "Every case: latency against the MACs that are kept (medians and quartiles of rounds)")


def _points(axes: Axes, rows: Sequence[Row], cases: Sequence[tuple[Any, ...]]) -> None:
    for row in rows:
        if row["model"] == "slim":
            place, macs = cases.index(_case(row)), least_macs(row)
            axes.plot([place - 0.4, place + 0.4], [macs, macs], label=_LINE, **_MACS)
    for i, (model, fill) in enumerate(_FILLS.items()):
        chosen = [row for row in rows if row["model"] == model]
        x = [cases.index(_case(row)) + 0.19 * (i - 1.5) for row in chosen]
        middles = [float(row["ratio"]) for row in chosen]
        spans = [[float(abs(row["ratio"] - row[end])) for row in chosen] for end in ("low", "high")]
        style = {"markerfacecolor": fill["facecolor"], "markeredgecolor": fill["edgecolor"], "color": fill["edgecolor"]}
        axes.errorbar(
            x,
            middles,
            spans,
            fmt=_MARKERS[model],
            markersize=4.5,
            capsize=2,
            label=_LABELS[model],
            linewidth=1,
            **style,
        )
    axes.axhline(1.0, color="0.4", linewidth=0.7, linestyle="--", zorder=0)
    axes.set_ylim(0.3, 1.15)
    axes.set_xlim(-0.6, len(cases) - 0.4)


def plot_compile(rows: Sequence[Row], path: Path) -> None:
    """Seconds and peak memory of every way over the size of the checkpoint."""
    with _picture(path, _README, 3.5) as figure:
        left, right = figure.subplots(1, 2)
        for way, style in _WAYS.items():
            chosen = [row for row in rows if row["way"] == way]
            sizes = [float(row["checkpoint_mb"]) for row in chosen]
            left.plot(sizes, [row["seconds"] for row in chosen], label=way, **style)
            right.plot(sizes, [row["peak_mb"] / 1024 for row in chosen], label=way, **style)
        right.axhline(
            rows[0]["import_peak_mb"] / 1024, color="0.6", linestyle="--", label="imports alone", linewidth=0.8
        )
        places = {row["size"]: float(row["checkpoint_mb"]) for row in rows}
        for axes, label in ((left, "seconds, whole process"), (right, "peak memory, GB")):
            axes.set_xlabel("checkpoint, MB")
            axes.set_title(label, loc="left")
            axes.set_xlim(0, 1.06 * max(places.values()))
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
            _sizes(axes, places)
        _legend(figure, right)


def _sizes(axes: Axes, places: dict[str, float]) -> None:
    """Names of the networks above the panel, but for the smallest, which would lie over each other."""
    top = axes.secondary_xaxis("top")
    apart = [(size, place) for size, place in places.items() if place > 0.1 * max(places.values())]
    top.set_xticks([place for _, place in apart], [_NAMES.get(size, size) for size, _ in apart])
    top.spines["top"].set_visible(False)
    for _, place in apart:
        axes.axvline(place, color="0.9", linewidth=0.6, zorder=0)


@contextmanager
def _picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of that many inches with letters of a size that a README shows."""
    import matplotlib as mpl

    with drawing.picture(path, PlotOptions(size=(width, height)), (width, height)) as figure:
        mpl.rcParams.update(_STYLE)  # until the picture is written
        yield figure


def _legend(figure: Figure, axes: Axes, title: str | None = None) -> None:
    """What `axes` shows, each once, above everything; `title` over it."""
    handles = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(handles.values()),
        list(handles),
        ncols=len(handles),
        loc="outside upper left",
        title=title,
        title_fontproperties={"weight": "bold", "size": 10},
        alignment="left",
        columnspacing=1.4,
        handlelength=1.4,
        handletextpad=0.5,
    )


def _case(row: Row) -> tuple[Any, ...]:
    return row["system"], row["size"], row["budget"], row["batch_size"]


def _name(system: str, size: str) -> str:
    """The network in two lines."""
    return f"{system}\n{_NAMES.get(size, size)}"


def _panel_title(engine: str, threads: int) -> str:
    return f"{ENGINES[engine]}, {threads} thread{'s' if threads > 1 else ''}"
