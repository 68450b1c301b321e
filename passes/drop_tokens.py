"""Let unselected tokens leave the stream instead of hiding them.

A hidden row is no key of any attention, counts in no context of a scorer, cannot be selected again and is not read by the
classifier; a transformer block mixes rows through attention alone. So no row that is read depends on it:

    softmax over kept j of s_ij  =  softmax over all j of (s_ij + log kept_j)        log 0 = -inf, whose exponential is 0

Given   select (drop off) before a block, keeping the K best of N patches
Result  the same selection with drop on: the block and all after it see P + K rows

Exact; the count K does not depend on the image, so every shape stays static. A selection of all the rows there are selects
nothing and goes, with its scorer.

Refuses a row set or token mask on a branch after a hiding selection: it counts rows by a position that would be lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from slimc.errors import PassError
from slimc.ir import Attention, Block, Mlp, Model, embedded_rows
from slimc.passes.rewrite import with_blocks


@dataclass(frozen=True)
class DropUnselectedTokens:
    """Make every selection drop rows; remove those that keep all."""

    def __call__(self, model: Model) -> Model:
        """`model` with fewer rows; the same object where nothing is hidden and every selection drops something."""
        blocks: list[Block] = []
        kept = embedded_rows(model) - model.prefix
        hiding = False
        for block in model.blocks:
            select = block.select
            if select is not None:
                hiding = hiding or not select.drop
                select = None if select.keep >= kept else select if select.drop else replace(select, drop=True)
                kept = kept if select is None else select.keep
            if hiding and _counts_rows(block):
                raise PassError("DropUnselectedTokens", f"{block.name} counts rows after a selection that hides some")
            blocks.append(block if select is block.select else replace(block, select=select))
            kept = kept if block.live is None else len(block.live) - model.prefix
        return with_blocks(model, tuple(blocks))


def _counts_rows(block: Block) -> bool:
    branches = [branch for branch in (block.attention, block.mlp) if isinstance(branch, Attention | Mlp)]
    return block.live is not None or any(b.rows is not None or b.token_mask is not None for b in branches)
