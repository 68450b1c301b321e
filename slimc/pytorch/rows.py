"""Sets of rows of the stream: taking them out of it, and putting them back."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimc import ir
from slimc.pytorch.layers import hold


class Rows(nn.Module):
    """`rows` of `count` along the last axis but one, or entries along `axis`; none for all."""

    index: Tensor | None

    def __init__(self, rows: ir.IndexArray | None, count: int, axis: int = -2) -> None:
        super().__init__()
        rows = np.arange(count) if rows is None else rows
        self.count, self.size, self.axis = count, len(rows), axis
        self.first = int(rows[0]) if len(rows) else 0
        consecutive = np.array_equal(rows, np.arange(self.first, self.first + self.size))
        hold(self, index=None if consecutive else rows)

    @property
    def all(self) -> bool:
        """Whether they are all, in order."""
        return self.index is None and self.size == self.count

    def forward(self, x: Tensor) -> Tensor:
        """They."""
        if self.all:
            return x
        return (
            x.narrow(self.axis, self.first, self.size) if self.index is None else x.index_select(self.axis, self.index)
        )

    def put(self, x: Tensor, rest: Tensor | None) -> Tensor:
        """`x` [B, rows, D] in their places among `count` rows; every other row is `rest` [D], zero where there is none."""
        if self.all:
            return x
        shape = (x.shape[0], self.count, x.shape[2])
        if self.index is not None or self.first > 0:
            others = x.new_zeros(shape) if rest is None else rest.expand(shape)
            if self.index is not None:
                return others.index_copy(1, self.index, x)
            return torch.slice_scatter(others, x, 1, self.first, self.first + self.size)
        return below(x, self.count - self.size, rest)


def below(x: Tensor, count: int, row: Tensor | None) -> Tensor:
    """`x` [B, N, D] with `count` further rows: `row` [D], zeros where there is none."""
    if row is None:
        return F.pad(x, (0, 0, 0, count))
    return torch.cat((x, row.expand(x.shape[0], count, -1)), 1)
