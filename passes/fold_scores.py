"""Score tokens by one number instead of two.

A selection only ranks. The log-softmax of keep rises with the difference of the two logits, and a constant changes no order:

    log softmax(k, d)[0] = -log(1 + e^-(k - d)),      k - d = y (w_k - w_d)^T + (b_k - b_d)

Given   the scorer's last layer [2, in] with its bias
Result  [1, in] without one: w_k - w_d

Exact: the same tokens are kept, image by image, equal scores included. In floating point the difference is the better
ranking: the log-softmax saturates at 0, where float32 cannot tell tokens apart any more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from slimc.ir import Block, Linear, Model
from slimc.passes.rewrite import with_blocks


@dataclass(frozen=True)
class FoldScores:
    """Leave one output in the last layer of every scorer."""

    def __call__(self, model: Model) -> Model:
        """`model` with single scores; the same object where there are no others."""
        return with_blocks(model, tuple(_block(block) for block in model.blocks))


def _block(block: Block) -> Block:
    if block.select is None or len(block.select.scorer.layers[-1].weight) == 1:
        return block
    scorer = block.select.scorer
    weight = scorer.layers[-1].weight
    layers = (*scorer.layers[:-1], Linear(weight[:1] - weight[1:]))
    return replace(block, select=replace(block.select, scorer=replace(scorer, layers=layers)))
