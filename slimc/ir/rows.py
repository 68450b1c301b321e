"""How many rows the residual stream has on its way through a model, and which of them a block reads and keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slimc.ir.layers import IndexArray
from slimc.ir.nodes import Attention, Block, Model, SelectTokens


@dataclass(frozen=True)
class BlockRows:
    """Rows of the stream at one block: before its selection, entering its attention, and leaving that."""

    before: int
    entering: int
    leaving: int


def embedded_rows(model: Model) -> int:
    """Rows of the stream that the embedding makes."""
    patches = model.embedding.patch.patches
    return model.prefix + (model.grid[0] * model.grid[1] if patches is None else len(patches))


def selected_rows(select: SelectTokens | None, rows: int) -> int:
    """Rows that `select` leaves of a stream of `rows`."""
    if select is None or not select.drop:
        return rows
    return min(rows, select.prefix + select.keep)


def key_rows(attention: Attention, entering: int) -> IndexArray:
    """Rows of a stream of `entering` rows that are keys."""
    return np.arange(entering) if attention.rows is None else attention.rows


def live_rows(block: Block, entering: int) -> IndexArray:
    """Rows of a stream of `entering` rows that outlive the attention of `block`."""
    return np.arange(entering) if block.live is None else block.live


def block_rows(model: Model) -> tuple[BlockRows, ...]:
    """Rows of the stream at every block."""
    rows, counts = embedded_rows(model), []
    for block in model.blocks:
        entering = selected_rows(block.select, rows)
        leaving = entering if block.live is None else len(block.live)
        counts.append(BlockRows(rows, entering, leaving))
        rows = leaving
    return tuple(counts)
