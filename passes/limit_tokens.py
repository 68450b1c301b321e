"""Limit how many patches a block uses, so that their number is static.

Given   t_i = [score_i > threshold] for the patches i of an image
Result  t_i = [score_i > threshold and i among the K highest scores]

The same for every image on which at most K patches are above the threshold; on others the lowest scores go first. The K
rows are gathered and what is below the threshold is masked among them, so attention and FFN have K + prefix rows.

A capacity that is not less than the number of patches limits nothing and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from slimc.errors import PassError
from slimc.ir import Block, BlockRows, Model, block_rows
from slimc.passes.rewrite import with_blocks


@dataclass(frozen=True)
class LimitTokens:
    """Give the token gate of every block its capacity, in patches; None leaves a block as it is."""

    capacities: tuple[int | None, ...]

    def __call__(self, model: Model) -> Model:
        """`model` with limited token gates; the same object where none is limited."""
        if len(self.capacities) != len(model.blocks):
            raise PassError("LimitTokens", f"{len(self.capacities)} entries for {len(model.blocks)} blocks")
        steps = zip(model.blocks, self.capacities, block_rows(model), strict=True)
        return with_blocks(model, tuple(_limit(block, capacity, rows, model.prefix) for block, capacity, rows in steps))


def _limit(block: Block, capacity: int | None, rows: BlockRows, prefix: int) -> Block:
    gates = block.gates
    if capacity is None or gates is None or gates.tokens is None or capacity >= rows.entering - prefix:
        return block
    if capacity < 1:
        raise PassError("LimitTokens", f"{block.name}: a capacity of {capacity} patches")
    if gates.tokens.capacity is not None and gates.tokens.capacity <= capacity:
        return block
    return replace(block, gates=replace(gates, tokens=replace(gates.tokens, capacity=capacity)))
