"""Remove rows of the stream that nobody reads: backward liveness over token positions.

A row is needed after a block if the next block's attention sees it (as a key), if it is needed after that block, or if
something reads it there: the classifier, a pool, or an output of the model. Going backwards from the last readers,

    needed before block l  =  needed after block l  united with  the rows that attention l sees

A row needed before the attention of block l but not after it is a key there and no query: `live` cuts it. A row that block
0 does not need is never embedded: its patch is dropped before the patch embedding. Which rows a selection keeps is not
known here, so it needs every row that enters it; an auxiliary head reads every patch.

Exact: no value that reaches an output changes. In the last block only rows that are read keep a query, an output
projection and an FFN. The tables of a rotation follow the rows. Refuses nothing; token masks count as sight of every row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from slimc.ir import (
    Attention,
    Block,
    BlockRows,
    BoolArray,
    Embedding,
    IndexArray,
    Mlp,
    Model,
    Rotation,
    block_rows,
    embedded_rows,
    key_rows,
    live_rows,
)
from slimc.passes.rewrite import map_rotations, renumber_reads

Branch = TypeVar("Branch", Attention, Mlp)


@dataclass(frozen=True)
class RemoveDeadTokens:
    """Cut every row of the stream where its last reader is."""

    def __call__(self, model: Model) -> Model:
        """`model` without dead rows; the same object where every row is read."""
        rows = block_rows(model)
        after = [_read_last(model, rows[-1].leaving if rows else embedded_rows(model))]
        for i, block, count in zip(range(len(rows) - 1, -1, -1), reversed(model.blocks), reversed(rows), strict=True):
            for output in model.outputs:
                if output.block == i:
                    after[-1][output.rows] = True
            after.append(_needed_before(block, after[-1], count))
        after.reverse()
        if all(mask.all() for mask in after):
            return model
        return _cut(model, after)


def _read_last(model: Model, rows: int) -> BoolArray:
    """Which of the last `rows` rows are read."""
    needed, classifier = np.zeros(rows, bool), model.classifier
    kinds = {output.kind for output in model.outputs}
    if kinds & {"logits", "features"}:
        needed[list(classifier.rows)] = True
        if classifier.pool is not None:
            needed[classifier.pool.rows] = True
    if "logits" in kinds and classifier.auxiliary is not None:
        needed[model.prefix :] = True
    for output in model.outputs:
        if output.kind == "tokens":
            needed[output.rows] = True
    return needed


def _needed_before(block: Block, needed_after: BoolArray, rows: BlockRows) -> BoolArray:
    if block.select is not None:
        return np.ones(rows.before, bool)
    needed = np.zeros(rows.entering, bool)
    needed[live_rows(block, rows.entering)[needed_after]] = True
    if isinstance(block.attention, Attention):
        needed[key_rows(block.attention, rows.entering)] = True
    return needed


def _cut(model: Model, needed: list[BoolArray]) -> Model:
    """`model` with only the rows that `needed` marks before each block and after the last."""
    blocks = []
    for block, rows, before, after in zip(model.blocks, block_rows(model), needed[:-1], needed[1:], strict=True):
        if block.select is not None:
            before = np.ones(rows.entering, bool)  # noqa: PLW2901 - what enters the attention is what was selected
        live = live_rows(block, len(before))[after]
        attention, mlp = block.attention, block.mlp
        if isinstance(attention, Attention):
            attention = _turn(_restrict(attention, before), before)
        if isinstance(mlp, Mlp):
            mlp = _restrict(mlp, after)
        renumbered = _renumber(live, before)
        identity = len(renumbered) == before.sum() and (renumbered == np.arange(len(renumbered))).all()
        blocks.append(replace(block, attention=attention, mlp=mlp, live=None if identity else renumbered))
    model = renumber_reads(model, [np.cumsum(mask) - 1 for mask in needed[1:]], np.cumsum(needed[-1]) - 1)
    return replace(model, embedding=_embedding(model, needed[0]), blocks=tuple(blocks))


def _turn(attention: Attention, kept: BoolArray) -> Attention:
    """The attention with its rotations over the rows that are kept."""
    return map_rotations(attention, lambda rotation: Rotation(rotation.cos[kept], rotation.sin[kept]))


def _restrict(branch: Branch, kept: BoolArray) -> Branch:
    """The branch with its row set and token mask over the rows that are kept."""
    rows = branch.rows
    if rows is not None:
        rows = _renumber(rows[kept[rows]], kept)
        if len(rows) == kept.sum() and (rows == np.arange(len(rows))).all():
            rows = None
    token_mask = None if branch.token_mask is None else branch.token_mask[kept]
    return replace(branch, rows=rows, token_mask=token_mask)


def _renumber(rows: IndexArray, kept: BoolArray) -> IndexArray:
    numbers: IndexArray = np.cumsum(kept)[rows] - 1
    return numbers


def _embedding(model: Model, needed: BoolArray) -> Embedding:
    """The embedding of the needed rows."""
    embedding = model.embedding
    prefix, patches = needed[: model.prefix], needed[model.prefix :]
    if needed.all():
        return embedding
    positions = embedding.patch.patches
    positions = np.arange(len(patches)) if positions is None else positions
    whole = patches.all() and embedding.patch.patches is None
    return replace(
        embedding,
        patch=replace(embedding.patch, patches=None if whole else positions[patches]),
        prefix=embedding.prefix[prefix],
        prefix_position=None if embedding.prefix_position is None else embedding.prefix_position[prefix],
        patch_position=None if embedding.patch_position is None else embedding.patch_position[patches],
    )
