"""Panels that pictures have in common: bars over the blocks, a table of shaded cells, a map of the patches; their places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from slimc.ir import FloatArray
from slimc.report.drawing import COLUMN, DENSE, PAGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

_TICK = 0.19  # inches that the number of a block takes
_LETTER = 0.64  # width of a digit over its height
_LARGEST, _SMALLEST = 6.5, 4.5  # points
_HEADLINE = 0.35  # inches
_MARGINS = (0.65, 0.6)  # inches across and down that labels and titles of a panel take


@dataclass(frozen=True)
class Layout:
    """Names of panels by row, the inches that every row asks for, and the picture's inches."""

    rows: tuple[tuple[str, ...], ...]
    heights: tuple[float, ...]
    size: tuple[float, float]


def arrange(names: Sequence[str], wide: Sequence[str], height: Callable[[str], float]) -> Layout:
    """Two panels a row, but for those that are `wide`; one narrow panel alone makes a picture one column wide."""
    rows: list[tuple[str, ...]] = []
    for name in names:
        pairs = name not in wide and rows and len(rows[-1]) == 1 and rows[-1][0] not in wide
        rows = [*rows[:-1], (*rows[-1], name)] if pairs else [*rows, (name,)]
    heights = tuple(max(map(height, row)) for row in rows)
    narrow = len(names) == 1 and names[0] not in wide
    size = (COLUMN, 2 * _HEADLINE + sum(heights)) if narrow else (PAGE, _HEADLINE + sum(heights))
    return Layout(tuple(rows), heights, size)


def places(figure: Figure, layout: Layout) -> Iterator[tuple[str, SubplotSpec, tuple[float, float]]]:
    """Every panel with its place on `figure`, and about the inches, width and height, that are left within its labels."""
    columns = max(map(len, layout.rows))
    grid = figure.add_gridspec(len(layout.rows), columns, height_ratios=layout.heights)
    width, height = figure.get_size_inches()
    scale = (height - _HEADLINE) / sum(layout.heights)
    for i, row in enumerate(layout.rows):
        for j, name in enumerate(row):
            place = grid[i, :] if len(row) < columns else grid[i, j]
            size = (width / len(row) - _MARGINS[0], scale * layout.heights[i] - _MARGINS[1])
            yield name, place, (max(size[0], 0.1), max(size[1], 0.1))


def block_axis(axes: Axes, count: int, inches: float) -> None:
    """Number the blocks below `axes`, which are about `inches` wide: every one, or as many as can be read."""
    step = next(step for step in (1, 2, 4, 5, 10, 20, 50, count) if step * inches >= count * _TICK)
    axes.set_xticks(range(0, count, step))
    axes.set_xlim(-0.6, max(count, 1) - 0.4)
    axes.set_xlabel("block")


def outline(axes: Axes, heights: Sequence[float] | FloatArray, label: str = "dense") -> None:
    """Grey bars of what there was, behind everything."""
    axes.bar(range(len(heights)), heights, width=0.8, label=label, zorder=1, **DENSE)


def cells(axes: Axes, values: FloatArray, top: float, size: tuple[float, float], label: str) -> None:
    """Shade `values` [rows, blocks] from 0 to `top`; NaN where there is none.

    Every cell has its number where letters of a readable size fit `size`, the panel's width and height in inches; a bar
    called `label` beside the panel explains the shades where they do not.
    """
    rows, columns = values.shape
    if not values.size:
        message(axes, "no attention")
        return
    mesh = _mesh(axes, values, 1.15 * top)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_yticks(range(0, rows, 1 if rows * 0.13 <= size[1] else 2 if rows * 0.065 <= size[1] else 5))
    block_axis(axes, columns, size[0])
    axes.set_xlim(-0.5, columns - 0.5)
    axes.tick_params(length=0)
    digits = max((len(f"{value:.0f}") for value in values.flat if not np.isnan(value)), default=1)
    width, height = 72 * size[0] / max(columns, 1), 72 * size[1] / max(rows, 1)
    points = min(_LARGEST, 0.9 * width / (_LETTER * digits), 0.75 * height)
    if points < _SMALLEST:
        _shades(axes, mesh, label, top, axes.inset_axes((1.01, 0.0, 0.012, 1.0)))
        return
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if value > 0.8 * top else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center_baseline", fontsize=points, color=colour)


def grid_map(axes: Axes, values: FloatArray, top: float, label: str) -> None:
    """Shade `values` [height, width] of the image grid from 0 to `top`; a bar called `label` explains the shades."""
    rows, columns = values.shape
    mesh = _mesh(axes, values[::-1], top)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.update_datalim([(1.4 * columns, 0.0)])  # room for the bar, which is as high as the map
    axes.autoscale_view()
    bar = axes.inset_axes((1.06 * columns, -0.5, 0.05 * columns, rows), transform=axes.transData)
    _shades(axes, mesh, label, top, bar)


def message(axes: Axes, text: str) -> None:
    """A sentence where the panel has nothing to show."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)


def _mesh(axes: Axes, values: FloatArray, top: float) -> QuadMesh:
    """One cell a value, with thin lines between them."""
    rows, columns = values.shape
    edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    shown = np.ma.masked_invalid(values)
    mesh: QuadMesh = axes.pcolormesh(*edges, shown, cmap="Blues", vmin=0, vmax=top, edgecolors="0.75", linewidth=0.3)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return mesh


def _shades(axes: Axes, mesh: QuadMesh, label: str, top: float, place: Axes) -> None:
    """Explain the shades of `mesh` by a bar at `place`."""
    from matplotlib.ticker import MaxNLocator

    figure = axes.figure
    assert figure is not None
    bar = figure.colorbar(mesh, cax=place, label=label)
    bar.ax.set_ylim(0, max(top, 1e-9))
    bar.outline.set_linewidth(0.4)
    bar.locator = MaxNLocator(nbins=5, integer=top >= 2)
    bar.update_ticks()
