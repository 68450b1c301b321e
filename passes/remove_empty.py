"""Remove heads that lost every channel, and branches that became constant.

    head with d_v = 0                          adds nothing: gone (with d_qk = 0 alone it still averages: kept)
    attention without heads                    adds output_bias to every row: a Constant
    attention without keys                     adds output_bias + sum over heads of Wo bv to every row: a Constant
    FFN without hidden units                   adds down.bias to every row: a Constant
    FFN that computes no row                   adds down(gelu(up.bias)) to every row: a Constant
    a Constant of zeros                        gone

Exact. A block with gates stays as it is: what it adds depends on the image. Attention without keys has ghosts only
(validation), whose value is the value bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slimc.ir import Attention, Block, Constant, Mlp, Model
from slimc.ir.interpret.attention import attend
from slimc.ir.interpret.linear import zero_row_output
from slimc.passes.rewrite import AttentionBranch, MlpBranch, map_branches, with_blocks


@dataclass(frozen=True)
class RemoveEmptyBranches:
    """Drop empty heads; make branches without work constants, and drop constants of zeros."""

    def __call__(self, model: Model) -> Model:
        """`model` without empty heads and branches; the same object where there is none."""
        slim = map_branches(model, attention=_attention, mlp=_mlp)
        steps = zip(model.blocks, slim.blocks, strict=True)
        return with_blocks(model, tuple(old if old.gates is not None else _without_zeros(new) for old, new in steps))


def _attention(attention: Attention) -> AttentionBranch:
    heads = tuple(head for head in attention.heads if head.value.weight.shape[0] > 0)
    if not heads or (attention.rows is not None and len(attention.rows) == 0):
        return _output_of_ghosts(attention)
    return attention if len(heads) == len(attention.heads) else replace(attention, heads=heads)


def _output_of_ghosts(attention: Attention) -> Constant:
    """What attention adds where every value is the value bias: to one row, which sees a ghost and nothing else."""
    heads = tuple(replace(head, rotation=None) for head in attention.heads)
    alone = replace(attention, heads=heads, token_mask=None, rows=np.zeros(0, np.int64), ghosts=1)
    dim = attention.norm.weight.shape[0]
    return Constant(np.asarray(attend(alone, np.zeros((1, 1, dim)))[0, 0], attention.norm.weight.dtype))


def _mlp(mlp: Mlp) -> MlpBranch:
    no_row = mlp.rows is not None and len(mlp.rows) == 0
    return Constant(zero_row_output(mlp)) if no_row or mlp.up.weight.shape[0] == 0 else mlp


def _without_zeros(block: Block) -> Block:
    attention = None if _is_zero(block.attention) else block.attention
    mlp = None if _is_zero(block.mlp) else block.mlp
    if attention is block.attention and mlp is block.mlp:
        return block
    return replace(block, attention=attention, mlp=mlp)


def _is_zero(branch: AttentionBranch | MlpBranch) -> bool:
    return isinstance(branch, Constant) and not branch.vector.any()
