"""The picture of a usage report: branches, heads, patch positions, and the distribution of MACs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slimc.files.output import replacing
from slimc.report.structure import pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from slimc.report.gate_usage import UsageReport


def plot_usage(report: UsageReport, grid: tuple[int, int], title: str, path: Path) -> None:
    """Draw `report` to `path`; `grid` are the patches along height and width."""
    plt = pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.5), layout="constrained")
    figure.suptitle(f"{title}: {report.images} images")
    _branches(axes[0, 0], report)
    _heads(axes[0, 1], report)
    _positions(axes[1, 0], report, grid)
    _macs(axes[1, 1], report)
    with replacing(path) as (temporary,):
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def _branches(axes: Axes, report: UsageReport) -> None:
    blocks = np.arange(len(report.blocks))
    for offset, part, color in ((-0.27, "attention", "tab:blue"), (0.0, "mlp", "tab:orange"), (0.27, "patches", "0.6")):
        shares = [getattr(block, part) for block in report.blocks]
        axes.bar(blocks + offset, shares, width=0.26, color=color, label="FFN" if part == "mlp" else part)
    axes.set_ylim(0, 1.05)
    axes.set_title("images that use a branch; mean share of patches")
    axes.set_xlabel("block")
    axes.legend(loc="lower left")


def _heads(axes: Axes, report: UsageReport) -> None:
    shares = np.array([block.heads for block in report.blocks]).T
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_title("images that use a head, where the block runs")
    axes.set_xlabel("block")
    axes.set_ylabel("head")
    axes.set_yticks(range(len(shares)))
    _colour_bar(axes, picture)


def _positions(axes: Axes, report: UsageReport, grid: tuple[int, int]) -> None:
    shares = np.mean([block.positions for block in report.blocks], axis=0).reshape(grid)
    picture = axes.imshow(shares, cmap="viridis")
    axes.set_title("share of images and blocks that use a patch")
    axes.set_xticks([])
    axes.set_yticks([])
    _colour_bar(axes, picture)


def _macs(axes: Axes, report: UsageReport) -> None:
    axes.hist(np.array(report.macs) / 1e6, bins=min(30, max(5, report.images // 4)), color="tab:green")
    axes.axvline(report.mean_macs / 1e6, color="black", label=f"mean {report.mean_macs / 1e6:,.0f} M")
    axes.axvline(
        report.macs_dense / 1e6, color="tab:red", linestyle="--", label=f"dense {report.macs_dense / 1e6:,.0f} M"
    )
    axes.set_title("MACs that the decisions of an image ask for")
    axes.set_xlabel("million MACs")
    axes.set_ylabel("images")
    axes.legend()


def _colour_bar(axes: Axes, picture: object) -> None:
    figure = axes.figure
    assert figure is not None
    figure.colorbar(picture, ax=axes)  # type: ignore[arg-type]
