"""How often a network that decides for each image uses its parts, and what images cost it: the facts behind a table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slimc import ir
from slimc.compiler.limits import needed_macs
from slimc.ir.gate_usage import Usage, patches_used

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class BlockReport:
    """One block over a set of images, as shares of them: its branches, every head, every patch position.

    Heads and patches count where a branch of the block runs. `patches_least` to `patches_most` are patches in use by an
    image.
    """

    name: str
    attention: float
    mlp: float
    heads: tuple[float, ...]
    patches: float
    patches_least: int
    patches_most: int
    positions: tuple[float, ...]


@dataclass(frozen=True)
class UsageReport:
    """A network over a set of images; `macs` are those that the decisions of each image ask for."""

    images: int
    blocks: tuple[BlockReport, ...]
    macs: tuple[int, ...]
    macs_dense: int

    @property
    def mean_macs(self) -> float:
        """MACs to expect of an image."""
        return float(np.mean(self.macs))

    @property
    def quantiles(self) -> dict[str, int]:
        """The distribution of MACs over the images."""
        return {f"{q:.0%}": int(np.quantile(self.macs, q)) for q in QUANTILES}


def report(usage: Usage, model: ir.Model, macs_dense: int) -> UsageReport:
    """The report on `usage` of `model`, which has `macs_dense` MACs with every gate at one."""
    blocks = []
    for block, used in zip(model.blocks, usage.blocks, strict=True):
        runs = used.runs
        tokens, heads = used.tokens[runs, model.prefix :], used.heads[runs]
        counts = patches_used(used, model.prefix)[runs] if runs.any() else np.zeros(1, np.int64)
        blocks.append(
            BlockReport(
                name=block.name,
                attention=float(used.attention.mean()),
                mlp=float(used.mlp.mean()),
                heads=tuple(heads.mean(0).tolist()) if runs.any() else (0.0,) * heads.shape[1],
                patches=float(counts.mean() / tokens.shape[1]),
                patches_least=int(counts.min()),
                patches_most=int(counts.max()),
                positions=tuple(tokens.mean(0).tolist()) if runs.any() else (0.0,) * tokens.shape[1],
            )
        )
    macs = needed_macs(model, usage)
    return UsageReport(len(macs), tuple(blocks), tuple(macs.tolist()), macs_dense)
