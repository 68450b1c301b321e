"""The picture of a structure: what is left of every head, FFN and token set, and which patches survive how long."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slimc.errors import MissingError, OptionError
from slimc.files import check_writable, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from slimc.structure import Structure

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


def plot_structure(structure: Structure, title: str, path: Path) -> None:
    """Draw `structure` to `path`: heads, FFN and tokens over depth, and the life of every patch on the image grid."""
    plt = pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.5), layout="constrained")
    figure.suptitle(title)
    _heads(axes[0, 0], structure)
    _hidden(axes[0, 1], structure)
    _tokens(axes[1, 0], structure)
    _patches(axes[1, 1], structure)
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


def _patches(axes: Axes, structure: Structure) -> None:
    """For every patch of the grid, the number of blocks that it enters."""
    blocks = np.zeros(structure.grid[0] * structure.grid[1], int)
    for layer in structure.layers:
        blocks[list(layer.patches)] += 1
    picture = axes.imshow(blocks.reshape(structure.grid), cmap="viridis", vmin=0, vmax=len(structure.layers))
    axes.set_title("patches on the image grid: blocks that each one enters")
    axes.set_xticks([])
    axes.set_yticks([])
    figure = axes.figure
    assert figure is not None
    figure.colorbar(picture, ax=axes, label="blocks")


def _whole_numbers(axes: Axes, count: int) -> None:
    axes.set_xticks(range(0, count, 1 if count <= 16 else 4))
