"""Fold constant branches into the bias before them.

    x + (h W^T + b),  then  + c      ->      x + (h W^T + (b + c))

The branch before a constant adds its bias to every row that the constant reaches, computed or not (a row outside the
FFN's row set gets down(gelu(up.bias)), which contains the bias as well). Where no branch stands before, the constant goes
into the embedding: prefix tokens and patch positions. Whoever reads the stream ends the way: the scorer of a selection, an
output behind the block before, a norm of the embedding. There the constant stays an attention branch. Exact; a later reader
of the stream sees the same sum.

Refuses a residual scale other than 1 on the branch before (FoldScales), and a block with gates before a constant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slimc.errors import PassError
from slimc.ir import Attention, Block, Constant, Embedding, FloatArray, Linear, Mlp, Model, embedded_rows
from slimc.passes.rewrite import with_blocks


@dataclass(frozen=True)
class FoldConstants:
    """Leave no constant branch in the model that another branch or the embedding can take."""

    def __call__(self, model: Model) -> Model:
        """`model` without constant branches; the same object where there is none."""
        if not any(isinstance(b.attention, Constant) or isinstance(b.mlp, Constant) for b in model.blocks):
            return model
        blocks: list[Block] = []
        pending: FloatArray | None = None
        # From the last block to the first: a constant travels until it meets a branch with a bias.
        read = {output.block for output in model.outputs} | ({-1} if model.embedding.norm is not None else set())
        for i, block in reversed(list(enumerate(model.blocks))):
            if block.gates is not None and pending is not None:
                raise PassError("FoldConstants", f"{block.name} has gates, behind which a constant cannot go")
            mlp, pending = _absorb_mlp(block.mlp, pending)
            attention, pending = _absorb_attention(block.attention, pending)
            if (block.select is not None or i - 1 in read) and pending is not None:
                blocks.append(_stop(block, pending, mlp))
                pending = None
            elif attention is block.attention and mlp is block.mlp:
                blocks.append(block)
            else:
                blocks.append(replace(block, attention=attention, mlp=mlp))
        model = with_blocks(model, tuple(reversed(blocks)))
        if pending is None:
            return model
        return replace(model, embedding=_absorb_embedding(model, pending))


def _stop(block: Block, pending: FloatArray, mlp: Mlp | None) -> Block:
    """A block whose selection the constant `pending` must not pass; the block itself where it is so already."""
    if isinstance(block.attention, Constant) and block.attention.vector is pending and mlp is block.mlp:
        return block
    return replace(block, attention=Constant(pending), mlp=mlp)


def _absorb_mlp(branch: Mlp | Constant | None, pending: FloatArray | None) -> tuple[Mlp | None, FloatArray | None]:
    if isinstance(branch, Constant):
        return None, _sum(branch.vector, pending)
    if branch is None or pending is None:
        return branch, pending
    _require_unit_scale(branch)
    return replace(branch, down=Linear(branch.down.weight, _sum(pending, branch.down.bias))), None


def _absorb_attention(
    branch: Attention | Constant | None, pending: FloatArray | None
) -> tuple[Attention | None, FloatArray | None]:
    if isinstance(branch, Constant):
        return None, _sum(branch.vector, pending)
    if branch is None or pending is None:
        return branch, pending
    _require_unit_scale(branch)
    return replace(branch, output_bias=_sum(pending, branch.output_bias)), None


def _absorb_embedding(model: Model, pending: FloatArray) -> Embedding:
    embedding = model.embedding
    patches = embedded_rows(model) - model.prefix
    position = (
        np.tile(pending, (patches, 1)) if embedding.patch_position is None else embedding.patch_position + pending
    )
    return replace(embedding, prefix=embedding.prefix + pending, patch_position=position)


def _sum(first: FloatArray, second: FloatArray | None) -> FloatArray:
    return first if second is None else first + second


def _require_unit_scale(branch: Attention | Mlp) -> None:
    if branch.residual_scale != 1.0 or branch.layer_scale is not None:
        raise PassError("FoldConstants", "a branch has a scale", "run FoldScales first")
