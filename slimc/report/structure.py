"""The picture of a structure: what is left of every head, FFN and token set, and which patches survive how long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slimc.errors import MissingError, OptionError
from slimc.files.output import check_writable, replacing
from slimc.ir import FloatArray, IndexArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from slimc.files.structure import Structure

SUFFIXES = (".png", ".pdf", ".svg")


def check_plot(path: Path) -> None:
    """Find out before any work whether a picture can be written to `path`.

    Raises:
        OptionError: the suffix is no picture's.
        OutputError: the path cannot be written.
        MissingError: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(f"--plot: {path} has the suffix {path.suffix or 'none'!r}; expected {', '.join(SUFFIXES)}")
    check_writable(path)
    pyplot()


def pyplot() -> Any:  # noqa: ANN401 - a module without types
    """matplotlib.pyplot, drawing to files.

    Raises:
        MissingError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise MissingError("--plot needs matplotlib; pip install 'slimc[plot]'") from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


@dataclass(frozen=True, eq=False)
class KeptPatches:
    """A picture [height, width, 3] in [0, 1], and the patches of it [K] that every selection keeps, by grid position."""

    picture: FloatArray
    kept: tuple[IndexArray, ...]


def plot_structure(structure: Structure, title: str, path: Path, kept: KeptPatches | None = None) -> None:
    """Draw `structure` to `path`: heads, FFN and tokens over depth, and the life of every patch on the image grid.

    Of a network that selects patches by the image, `kept` adds one picture a selection, with the patches that it keeps.
    """
    plt = pyplot()
    figure = plt.figure(figsize=(12, 8.5 if kept is None else 12), layout="constrained")
    figure.suptitle(title)
    upper = figure
    if kept is not None:
        upper, lower = figure.subfigures(2, 1, height_ratios=(8.5, 3.5))
        _selections(lower.subplots(1, 1 + len(kept.kept)), structure, kept)
    axes = upper.subplots(2, 2)
    _heads(axes[0, 0], structure)
    _hidden(axes[0, 1], structure)
    _tokens(axes[1, 0], structure)
    _patches(axes[1, 1], structure, kept)
    with replacing(path) as (temporary,):
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def _heads(axes: Axes, structure: Structure) -> None:
    """A cell a head, its width as number and shade."""
    heads = max((len(layer.heads) for layer in structure.layers), default=0)
    widths = np.full((heads, len(structure.layers)), np.nan)
    for i, layer in enumerate(structure.layers):
        widths[: len(layer.heads), i] = sorted(layer.heads, reverse=True)
    axes.imshow(widths, cmap="Blues", vmin=0, vmax=structure.head_dim, aspect="auto")
    small = widths.size > 400
    for (row, column), width in np.ndenumerate(widths):
        if not (small or np.isnan(width)):
            shade = "white" if width > 0.6 * structure.head_dim else "black"
            axes.text(column, row, f"{width:.0f}", ha="center", va="center", fontsize=8, color=shade)
    axes.set_title(f"channels of every head, widest first (dense: {structure.head_dim})")
    axes.set_xlabel("block")
    axes.set_ylabel("head")
    axes.set_yticks(range(heads))
    _whole_numbers(axes, len(structure.layers))


def _hidden(axes: Axes, structure: Structure) -> None:
    blocks = np.arange(len(structure.layers))
    axes.bar(blocks, [structure.hidden] * len(blocks), color="0.9", label="dense")
    axes.bar(blocks, [layer.hidden for layer in structure.layers], color="tab:blue", label="kept")
    axes.set_title("FFN channels")
    axes.set_xlabel("block")
    axes.legend(loc="lower left")
    _whole_numbers(axes, len(blocks))


def _tokens(axes: Axes, structure: Structure) -> None:
    blocks = np.arange(len(structure.layers))
    dense = structure.prefix + structure.grid[0] * structure.grid[1]
    axes.bar(blocks, [dense] * len(blocks), color="0.9", label="dense")
    axes.bar(blocks, [layer.tokens for layer in structure.layers], color="tab:orange", label="entering")
    axes.bar(
        blocks, [layer.tokens_out for layer in structure.layers], color="tab:red", width=0.4, label="leaving attention"
    )
    axes.set_title("tokens")
    axes.set_xlabel("block")
    axes.legend(loc="lower left")
    _whole_numbers(axes, len(blocks))


def _patches(axes: Axes, structure: Structure, kept: KeptPatches | None) -> None:
    """For every patch of the grid, the number of blocks that it enters."""
    if structure.selecting and kept is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "which patches are kept depends on the image:\ngive one with --image", ha="center")
        return
    blocks = np.zeros(structure.grid[0] * structure.grid[1], int)
    for patches in _entering(structure, kept):
        blocks[patches] += 1
    picture = axes.imshow(blocks.reshape(structure.grid), cmap="viridis", vmin=0, vmax=len(structure.layers))
    axes.set_title("patches on the image grid: blocks entered")
    axes.set_xticks([])
    axes.set_yticks([])
    figure = axes.figure
    assert figure is not None
    figure.colorbar(picture, ax=axes, label="blocks")


def _entering(structure: Structure, kept: KeptPatches | None) -> Iterator[list[int]]:
    """The patches that enter every block."""
    chosen: list[int] | None = None
    selections = iter(() if kept is None else kept.kept)
    for layer in structure.layers:
        if layer.scorer_macs:
            chosen = next(selections).tolist()
        yield list(layer.patches) if chosen is None else chosen


def _selections(axes: NDArray[np.object_], structure: Structure, kept: KeptPatches) -> None:
    """The picture, and for every selection the picture with the dropped patches faded."""
    titles = ["image", *(f"{layer.name}: {layer.tokens - structure.prefix} patches" for layer in structure.selecting)]
    rows, columns = structure.grid
    for axis, title, patches in zip(axes, titles, (None, *kept.kept), strict=True):
        visible = np.ones(rows * columns) if patches is None else np.zeros(rows * columns)
        visible[patches] = 1.0
        share = visible.reshape(structure.grid)
        for side, count in enumerate(structure.grid):
            share = share.repeat(structure.image[side] // count, axis=side)
        axis.imshow(1.0 - (1.0 - kept.picture) * (0.12 + 0.88 * share[..., None]))
        axis.set_title(title)
        axis.set_axis_off()


def _whole_numbers(axes: Axes, count: int) -> None:
    axes.set_xticks(range(0, count, 1 if count <= 16 else 4))
