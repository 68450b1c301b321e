"""The picture of a usage report: branches, heads, patch positions, and the distribution of MACs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slimc.report import drawing, panels
from slimc.report.drawing import DARK, KEPT, OTHER, PALE, PlotOptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from slimc.report.gate_usage import UsageReport

PANELS = ("branches", "heads", "patches", "macs")
_WIDE = ("branches", "heads")
_Size = tuple[float, float]


def plot_usage(
    report: UsageReport, grid: tuple[int, int], title: str, path: Path, options: PlotOptions | None = None
) -> None:
    """Draw `report` to `path`; `grid` are the patches along height and width, `options.panels` are of `PANELS`.

    Raises:
        OptionError: a panel that there is not, or a size that they do not fit.
        MissingError: matplotlib is not installed.
        OutputError: `path` cannot be written.
    """
    options = options or PlotOptions()
    layout = panels.arrange(drawing.chosen_panels(options, PANELS), _WIDE, lambda name: _height(name, report))
    draw: dict[str, Callable[[Axes, _Size], None]] = {
        "branches": lambda axes, size: _branches(axes, report, size),
        "heads": lambda axes, size: _heads(axes, report, size),
        "patches": lambda axes, _: _positions(axes, report, grid),
        "macs": lambda axes, _: _macs(axes, report),
    }
    with drawing.picture(path, options, layout.size) as figure:
        used = f"mean MACs {report.mean_macs / report.macs_dense:.0%} of dense".replace("%", " %")
        drawing.headline(figure, title, (f"{report.images} images", used))
        for name, place, size in panels.places(figure, layout):
            draw[name](figure.add_subplot(place), size)


def _height(name: str, report: UsageReport) -> float:
    """Inches that a panel asks for, its title and labels included."""
    if name == "heads":
        return 0.6 + float(np.clip(0.145 * max((len(block.heads) for block in report.blocks), default=0), 0.5, 3.5))
    return 1.95


def _branches(axes: Axes, report: UsageReport, size: _Size) -> None:
    """Three bars a block, as per cent."""
    blocks = np.arange(len(report.blocks))
    parts = (("attention", "attention", DARK), ("mlp", "FFN", KEPT), ("patches", "patches, where it runs", PALE))
    for offset, (part, label, colour) in zip((-0.27, 0.0, 0.27), parts, strict=True):
        shares = [100 * getattr(block, part) for block in report.blocks]
        axes.bar(blocks + offset, shares, width=0.26, color=colour, label=label)
    everything = all(block.attention == block.mlp == block.patches == 1.0 for block in report.blocks)
    drawing.heading(axes, "images that use a branch", "nothing skipped" if everything else "")
    axes.set_ylabel("per cent")
    axes.set_ylim(0, 105)
    panels.block_axis(axes, len(blocks), size[0])
    drawing.key(axes)


def _heads(axes: Axes, report: UsageReport, size: _Size) -> None:
    shares = np.full((max((len(block.heads) for block in report.blocks), default=0), len(report.blocks)), np.nan)
    for i, block in enumerate(report.blocks):
        shares[: len(block.heads), i] = 100 * np.array(block.heads)
    state = "nothing skipped" if np.nanmin(shares, initial=100) == 100 else f"{np.nanmean(shares):.0f} % on average"
    drawing.heading(axes, "images that use a head, per cent, where the block runs", state, below=5)
    axes.set_ylabel("head")
    panels.cells(axes, shares, 100, size, "per cent")


def _positions(axes: Axes, report: UsageReport, grid: tuple[int, int]) -> None:
    shares = 100 * np.mean([block.positions for block in report.blocks], axis=0)
    state = "nothing skipped" if shares.min() == 100 else f"{shares.mean():.0f} % on average"
    drawing.heading(axes, "use of every patch", state)
    panels.grid_map(axes, shares.reshape(grid), 100, "per cent")


def _macs(axes: Axes, report: UsageReport) -> None:
    """How many images ask for how many MACs, with their mean and those of the dense network."""
    scale, unit = (1e9, "G") if report.macs_dense >= 1e9 else (1e6, "M")
    axes.hist(np.array(report.macs) / scale, bins=min(30, max(5, report.images // 4)), color=PALE, edgecolor="white")
    lines = (("mean", report.mean_macs, DARK, "-"), ("dense", report.macs_dense, OTHER, "--"))
    for name, macs, colour, line in lines:
        label = f"{name} {macs / scale:.{2 if unit == 'G' else 1}f} {unit}"
        axes.axvline(macs / scale, color=colour, linestyle=line, linewidth=1.2, label=label)
    drawing.heading(axes, "MACs that an image asks for")
    axes.set_xlabel(f"MACs, {unit}")
    axes.set_ylabel("images")
    axes.locator_params(axis="y", integer=True)
    drawing.key(axes)
