"""What a network that decides for each image what runs decided for a set of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slimc.ir.layers import BoolArray, FloatArray, IndexArray


@dataclass(frozen=True, eq=False)
class BlockUsage:
    """What one block decided on n images: attention [n], mlp [n], heads [n, H], tokens [n, N], prefix rows first."""

    attention: BoolArray
    mlp: BoolArray
    heads: BoolArray
    tokens: BoolArray

    @property
    def runs(self) -> BoolArray:
        """Whether any branch ran [n]: only then did heads and tokens matter."""
        return self.attention | self.mlp


@dataclass(frozen=True, eq=False)
class Usage:
    """What every block decided; `margin` [n] is each image's least distance of a logit from its threshold."""

    blocks: tuple[BlockUsage, ...]
    margin: FloatArray


def join(parts: Sequence[Usage]) -> Usage:
    """The usage of several sets of images, one after the other."""
    blocks = []
    for same in zip(*(part.blocks for part in parts), strict=True):
        fields = ("attention", "mlp", "heads", "tokens")
        blocks.append(BlockUsage(*(np.concatenate([getattr(block, field) for block in same]) for field in fields)))
    return Usage(tuple(blocks), np.concatenate([part.margin for part in parts]))


def patches_used(used: BlockUsage, prefix: int) -> IndexArray:
    """Patches that every image uses in a block [n]; none where no branch runs."""
    counts: IndexArray = np.where(used.runs, used.tokens[:, prefix:].sum(1), 0)
    return counts
