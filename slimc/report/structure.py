"""The picture of a structure: what is left of every head, FFN and token set, and which patches survive how long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slimc.errors import OptionError
from slimc.ir import FloatArray, IndexArray
from slimc.report import drawing, panels
from slimc.report.drawing import DARK, KEPT, NOTHING, OTHER, PALE, PlotOptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

    from slimc.files.structure import Structure
    from slimc.targets.count import Counts

PANELS = ("heads", "ffn", "tokens", "macs", "patches", "selections")
_WIDE = ("heads", "selections")  # take a row of their own


@dataclass(frozen=True, eq=False)
class KeptPatches:
    """A picture [height, width, 3] in [0, 1], and the patches of it [K] that every selection keeps, by grid position."""

    picture: FloatArray
    kept: tuple[IndexArray, ...]


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a panel is drawn from, and the inches it has: width and height."""

    structure: Structure
    kept: KeptPatches | None
    size: tuple[float, float]


def plot_structure(
    structure: Structure,
    counts: tuple[Counts, Counts],
    title: str,
    path: Path,
    kept: KeptPatches | None = None,
    options: PlotOptions | None = None,
) -> None:
    """Draw `structure` to `path`: heads, FFN, tokens and MACs over depth, and the life of every patch on the image grid.

    Args:
        structure: the network.
        counts: parameters and MACs of the dense network and of this one, for the headline.
        title: what the headline begins with.
        path: ends in .png, .pdf or .svg.
        kept: of a network that selects patches by the image, one image and what is kept of it; drawn for every selection.
        options: panels (of `PANELS`), size and resolution.

    Raises:
        OptionError: a panel that there is not, or a size that they do not fit.
        MissingError: matplotlib is not installed.
        OutputError: `path` cannot be written.
    """
    options = options or PlotOptions()
    layout = panels.arrange(_chosen(options, kept), _WIDE, lambda name: _height(name, structure, kept))
    with drawing.picture(path, options, layout.size) as figure:
        drawing.headline(figure, title, _changes(*counts))
        for name, place, size in panels.places(figure, layout):
            drawn = Drawn(structure, kept, size)
            if name == "selections":
                _selections(figure, place, drawn)
            else:
                _DRAW[name](figure.add_subplot(place), drawn)


def _chosen(options: PlotOptions, kept: KeptPatches | None) -> tuple[str, ...]:
    chosen = drawing.chosen_panels(options, PANELS)
    if kept is None and "selections" in options.panels:
        raise OptionError("--plot-panel: selections need a network that selects patches by the image, and --image FILE")
    return tuple(name for name in chosen if name != "selections" or kept is not None)


def _height(name: str, structure: Structure, kept: KeptPatches | None) -> float:
    """Inches that a panel asks for, its title and labels included."""
    if name == "heads":
        heads = max((len(layer.heads) for layer in structure.layers), default=0)
        return 0.6 + float(np.clip(0.145 * heads, 0.5, 3.5))
    if name == "selections":
        pictures = 1 + (0 if kept is None else len(kept.kept))
        return 0.3 + min(2.5, drawing.PAGE / pictures * structure.grid[0] / structure.grid[1])
    return 1.95


def _changes(dense: Counts, slim: Counts) -> tuple[str, str]:
    """Parameters and MACs before and after."""
    before, after = (f"{counts.params:,}" for counts in (dense, slim))
    params = f"parameters {before}" if slim.params == dense.params else f"parameters {before} → {after}"
    if slim.params != dense.params:
        params += f" ({slim.params / dense.params:.0%})".replace("%", " %")
    scale, unit = (1e9, "G") if dense.macs >= 1e9 else (1e6, "M")
    form = ".2f" if unit == "G" else ".1f"
    macs = f"MACs {dense.macs / scale:{form}} {unit}"
    if slim.macs != dense.macs:
        macs += f" → {slim.macs / scale:{form}} {unit} ({slim.macs / dense.macs:.0%})".replace("%", " %")
    return params, macs


def _heads(axes: Axes, drawn: Drawn) -> None:
    """A cell a head in the order of the network, its width as number and shade."""
    layers, head_dim = drawn.structure.layers, drawn.structure.head_dim
    widths = np.full((max((len(layer.heads) for layer in layers), default=0), len(layers)), np.nan)
    for i, layer in enumerate(layers):
        widths[: len(layer.heads), i] = layer.heads
    state = drawing.share(float(np.nansum(widths)), float(head_dim * np.count_nonzero(~np.isnan(widths))))
    drawing.heading(axes, f"channels of every head (dense: {head_dim})", state, below=5)
    axes.set_ylabel("head")
    panels.cells(axes, widths, head_dim, drawn.size, "channels")


def _hidden(axes: Axes, drawn: Drawn) -> None:
    layers, dense = drawn.structure.layers, drawn.structure.hidden
    kept = [layer.hidden for layer in layers]
    panels.outline(axes, [dense] * len(layers))
    axes.bar(range(len(layers)), kept, width=0.8, color=KEPT, label="kept", zorder=2)
    drawing.heading(axes, "FFN channels", drawing.share(sum(kept), dense * len(layers)))
    axes.set_ylabel("channels")
    _finish(axes, drawn, dense)


def _tokens(axes: Axes, drawn: Drawn) -> None:
    """Rows that enter the attention of every block, and those that leave it for the FFN."""
    layers = drawn.structure.layers
    dense = drawn.structure.prefix + drawn.structure.grid[0] * drawn.structure.grid[1]
    entering, leaving = ([getattr(layer, name) for layer in layers] for name in ("tokens", "tokens_out"))
    panels.outline(axes, [dense] * len(layers))
    axes.bar(range(len(layers)), entering, width=0.8, color=PALE, label="entering", zorder=2)
    axes.bar(range(len(layers)), leaving, width=0.4, color=DARK, label="leaving attention", zorder=3)
    drawing.heading(axes, "tokens", _token_state(entering, leaving, dense))
    axes.set_ylabel("tokens")
    _finish(axes, drawn, dense)


def _token_state(entering: Sequence[int], leaving: Sequence[int], dense: int) -> str:
    """Behind the last attention a classifier reads few rows, of a network that was not pruned as well."""
    if sum(entering) < dense * len(entering):
        return drawing.share(sum(entering), dense * len(entering))
    return NOTHING if all(rows == dense for rows in leaving) else "no patch removed"


def _macs(axes: Axes, drawn: Drawn) -> None:
    """Multiply-accumulates of every block for one image, and of the predictors before it."""
    layers = drawn.structure.layers
    dense, kept, predictors = (
        np.array([getattr(layer, name) for layer in layers], float) for name in ("macs_dense", "macs", "scorer_macs")
    )
    scale, unit = (1e9, "G") if dense.max(initial=0) >= 1e9 else (1e6, "M")
    panels.outline(axes, dense / scale)
    axes.bar(range(len(layers)), kept / scale, width=0.8, color=KEPT, label="kept", zorder=2)
    if predictors.any():
        bottom = kept / scale
        axes.bar(
            range(len(layers)), predictors / scale, width=0.8, bottom=bottom, color=OTHER, label="predictor", zorder=3
        )
    drawing.heading(axes, "MACs of every block", drawing.share(float((kept + predictors).sum()), float(dense.sum())))
    axes.set_ylabel(f"MACs, {unit}")
    _finish(axes, drawn, max(dense.max(initial=0.0), (kept + predictors).max(initial=0.0)) / scale)


def _finish(axes: Axes, drawn: Drawn, highest: float) -> None:
    panels.block_axis(axes, len(drawn.structure.layers), drawn.size[0])
    axes.set_ylim(0, 1.05 * max(highest, 1e-9))
    axes.locator_params(axis="y", nbins=5)
    drawing.key(axes)


def _patches(axes: Axes, drawn: Drawn) -> None:
    """For every patch of the grid, the number of blocks that it enters."""
    structure = drawn.structure
    if structure.selecting and drawn.kept is None:
        drawing.heading(axes, "blocks that a patch enters")
        panels.message(axes, "The image decides which patches are kept:\ngive one with --image.")
        return
    blocks = np.zeros(structure.grid[0] * structure.grid[1])
    for patches in _entering(structure, drawn.kept):
        blocks[patches] += 1
    state = drawing.share(float(blocks.sum()), float(len(structure.layers) * blocks.size))
    drawing.heading(axes, "blocks that a patch enters", state)
    panels.grid_map(axes, blocks.reshape(structure.grid), len(structure.layers), "blocks")


def _entering(structure: Structure, kept: KeptPatches | None) -> Iterator[list[int]]:
    """The patches that enter every block."""
    chosen: list[int] | None = None
    selections = iter(() if kept is None else kept.kept)
    for layer in structure.layers:
        if layer.scorer_macs:
            chosen = next(selections).tolist()
        yield list(layer.patches) if chosen is None else chosen


def _selections(figure: Figure, place: SubplotSpec, drawn: Drawn) -> None:
    """The picture, and for every selection the picture with the dropped patches faded."""
    structure, kept = drawn.structure, drawn.kept
    assert kept is not None
    titles = ["image", *(f"{layer.name}: {layer.tokens - structure.prefix} patches" for layer in structure.selecting)]
    grid = place.subgridspec(1, len(titles))
    rows, columns = structure.grid
    for i, (title, patches) in enumerate(zip(titles, (None, *kept.kept), strict=True)):
        visible = np.ones(rows * columns) if patches is None else np.zeros(rows * columns)
        visible[patches] = 1.0
        share = visible.reshape(structure.grid)
        for side, count in enumerate(structure.grid):
            share = share.repeat(structure.image[side] // count, axis=side)
        axes = figure.add_subplot(grid[0, i])
        axes.imshow(1.0 - (1.0 - kept.picture) * (0.12 + 0.88 * share[..., None]))
        axes.set_title(title, fontweight="normal")
        axes.set_axis_off()


_DRAW: dict[str, Callable[[Axes, Drawn], None]] = {
    "heads": _heads,
    "ffn": _hidden,
    "tokens": _tokens,
    "macs": _macs,
    "patches": _patches,
}
