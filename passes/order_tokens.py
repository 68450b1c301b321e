"""Order the patches by how long they live, so that every cut of the stream takes a prefix.

A transformer block treats the rows of its stream alike: permuting the patches permutes the rows and changes no logit, as
long as position embeddings, rotations, row sets, masks and readers are permuted with them. Ordered by falling lifetime
(ties keep the grid's order), the rows that leave any block are the first ones of those that entered: the emitter's gathers
become slices, which cost next to nothing. Exact; prefix tokens stay in front. Where rows are selected by the image, every
patch lives until then and no row is a fixed patch after it: nothing to order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from slimc.ir import Attention, Embedding, IndexArray, Mlp, Model, Rotation, embedded_rows, live_rows
from slimc.passes.rewrite import map_rotations, renumber_reads

Branch = TypeVar("Branch", Attention, Mlp)


@dataclass(frozen=True)
class OrderTokens:
    """Sort the patches of the embedding by falling lifetime."""

    def __call__(self, model: Model) -> Model:
        """`model` with its patches reordered; the same object where they are in order already."""
        if any(block.select is not None for block in model.blocks):
            return model
        lifetimes = _lifetimes(model)
        order = np.argsort(-lifetimes, kind="stable")
        if (order == np.arange(len(order))).all():
            return model
        return _reorder(model, order)


def _lifetimes(model: Model) -> IndexArray:
    """For each embedded row, the number of blocks after which it is still there; prefix rows count as immortal."""
    rows = np.arange(embedded_rows(model))
    lifetimes: IndexArray = np.zeros(len(rows), np.int64)
    for block in model.blocks:
        rows = rows if block.live is None else rows[block.live]
        lifetimes[rows] += 1
    lifetimes[: model.prefix] = len(model.blocks) + 1
    return lifetimes


def _reorder(model: Model, order: IndexArray) -> Model:
    """`model` with embedded row i holding what row order[i] held; every later stream keeps its rows in that order too."""
    embedding = _embedding(model.embedding, order[model.prefix :] - model.prefix)
    new_order, blocks = order, []
    after: list[IndexArray] = []
    for block in model.blocks:
        count = len(new_order)
        position = np.empty(count, np.int64)
        position[new_order] = np.arange(count)
        live = live_rows(block, count)
        new_live = np.sort(position[live])
        # Row j of the leaving stream was live[j]; in the new stream it stands where its entering position sorts.
        leaving_order = np.argsort(position[live], kind="stable")
        attention, mlp = block.attention, block.mlp
        if isinstance(attention, Attention):
            attention = _turned(_permuted(attention, position, new_order), new_order)
        if isinstance(mlp, Mlp):
            leaving = np.argsort(leaving_order)
            mlp = _permuted(mlp, leaving, leaving_order)
        whole = len(new_live) == count
        blocks.append(replace(block, attention=attention, mlp=mlp, live=None if whole else new_live))
        new_order = leaving_order
        after.append(np.argsort(new_order))
    model = renumber_reads(model, after, np.argsort(new_order))
    return replace(model, embedding=embedding, blocks=tuple(blocks))


def _turned(attention: Attention, order: IndexArray) -> Attention:
    return map_rotations(attention, lambda rotation: Rotation(rotation.cos[order], rotation.sin[order]))


def _permuted(branch: Branch, position: IndexArray, order: IndexArray) -> Branch:
    rows = None if branch.rows is None else np.sort(position[branch.rows])
    token_mask = None if branch.token_mask is None else branch.token_mask[order]
    return replace(branch, rows=rows, token_mask=token_mask)


def _embedding(embedding: Embedding, order: IndexArray) -> Embedding:
    patches = embedding.patch.patches
    position = embedding.patch_position
    return replace(
        embedding,
        patch=replace(embedding.patch, patches=order if patches is None else patches[order]),
        patch_position=None if position is None else position[order],
    )
