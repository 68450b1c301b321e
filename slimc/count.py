"""Multiply-accumulates and parameters of a model, as the emitted graph will have them.

MACs are those of the Conv, Gemm and MatMul nodes for one image; parameters are the float initializers. Both are counted from
the IR, so that they are known before anything is emitted; a test counts them again in the ONNX file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slimc import ir
from slimc.emit_absorbed import absorbed_macs, absorbed_params, absorbs
from slimc.emit_projection import ghost_rows, head_groups, projects_once
from slimc.target import Target


@dataclass(frozen=True)
class Counts:
    """MACs for one image, and parameters."""

    macs: int
    params: int


def count(model: ir.Model, target: Target) -> Counts:
    """MACs and parameters of `model` when emitted for `target`."""
    return Counts(macs=count_macs(model, target), params=count_params(model, target))


def count_macs(model: ir.Model, target: Target) -> int:
    """MACs of `model` for one image."""
    blocks = sum(block_macs(model, target)) + sum(selection_macs(model))
    return embedding_macs(model) + blocks + classifier_macs(model)


def block_macs(model: ir.Model, target: Target) -> tuple[int, ...]:
    """MACs of every block for one image."""
    counts = []
    for block, rows in zip(model.blocks, ir.block_rows(model), strict=True):
        macs = 0
        if isinstance(block.attention, ir.Attention):
            live = np.arange(rows.entering) if block.live is None else block.live
            macs += _attention_macs(block.attention, rows.entering, live, target)
        if isinstance(block.mlp, ir.Mlp):
            computed = rows.leaving if block.mlp.rows is None else len(block.mlp.rows)
            macs += computed * (block.mlp.up.weight.size + block.mlp.down.weight.size)
        counts.append(macs)
    return tuple(counts)


def selection_macs(model: ir.Model) -> tuple[int, ...]:
    """MACs of the scorer before every block for one image; 0 where nothing is selected."""
    return tuple(
        0 if block.select is None else _scorer_macs(block.select.scorer, rows.before)
        for block, rows in zip(model.blocks, ir.block_rows(model), strict=True)
    )


def _scorer_macs(scorer: ir.TokenScorer, rows: int) -> int:
    """Every row is scored, prefix rows too; the context is averaged and goes through its half of the first layer once."""
    context, first = len(scorer.context.weight), scorer.layers[0].weight
    shared = len(first) * context
    each = scorer.local.weight.size + scorer.context.weight.size + first.size - shared
    each += sum(layer.weight.size for layer in scorer.layers[1:])
    return rows * (each + context) + shared


def embedding_macs(model: ir.Model) -> int:
    """MACs of the stem and the patch embedding for one image."""
    macs, (height, width) = 0, model.image
    for convolution in model.embedding.stem:
        height, width = ((side - 1) // convolution.stride + 1 for side in (height, width))
        macs += height * width * convolution.weight.size
    return macs + (ir.embedded_rows(model) - model.prefix) * model.embedding.patch.weight.size


def classifier_macs(model: ir.Model) -> int:
    """MACs behind the last block for one image."""
    classifier = model.classifier
    macs = sum(head.weight.size for head in classifier.heads)
    if classifier.auxiliary is not None:
        rows = ir.block_rows(model)[-1].leaving if model.blocks else ir.embedded_rows(model)
        macs += (rows - model.prefix) * classifier.auxiliary.weight.size
    if classifier.pre_logits is not None:
        macs += classifier.pre_logits.weight.size * len(classifier.rows)
    return macs


def _attention_macs(attention: ir.Attention, entering: int, live: ir.IndexArray, target: Target) -> int:
    if absorbs(attention, entering, live, target):
        return absorbed_macs(attention, entering, live, target)
    keys = np.arange(entering) if attention.rows is None else attention.rows
    columns = len(keys) + ghost_rows(len(keys), attention.ghosts, target)
    once = projects_once(attention, entering, live, target)
    projected = columns if once else len(keys)
    computed_queries = columns if once else int(np.isin(live, keys).sum())
    macs = 0
    for group in head_groups(attention):
        for head in group:
            d_qk, d_v = head.query.weight.shape[0], head.value.weight.shape[0]
            dim = head.query.weight.shape[1]
            macs += dim * (computed_queries * d_qk + projected * (d_qk + d_v) + len(live) * d_v)
            macs += len(live) * columns * (d_qk + d_v)
    return macs


def count_params(model: ir.Model, target: Target) -> int:
    """Parameters of `model`: its arrays without masks, and the constant rows that a partial FFN adds."""
    params = sum(array.size for array in ir.arrays(model))
    for block in model.blocks:
        if isinstance(block.attention, ir.Attention):
            params -= _size(block.attention.token_mask) + sum(_size(head.mask) for head in block.attention.heads)
        if isinstance(block.mlp, ir.Mlp):
            params -= _size(block.mlp.token_mask) + _size(block.mlp.mask)
            params += 0 if block.mlp.rows is None else model.dim
    for block, rows in zip(model.blocks, ir.block_rows(model), strict=True):
        if isinstance(block.attention, ir.Attention):
            live = np.arange(rows.entering) if block.live is None else block.live
            params += _projection_params(block.attention, rows.entering, live, target)
    return params - _unused_embedding(model)


def _unused_embedding(model: ir.Model) -> int:
    """Weights of a patch embedding that embeds no patch: they are not emitted."""
    patch = model.embedding.patch
    return 0 if ir.embedded_rows(model) > model.prefix else patch.weight.size + _size(patch.bias)


def _projection_params(attention: ir.Attention, entering: int, live: ir.IndexArray, target: Target) -> int:
    """Parameters that the projections have beyond the heads' own: zero biases within a product, minus unused queries.

    Where every query is constant, its bias becomes a Constant node and its weights are not needed.
    """
    heads = attention.heads
    if absorbs(attention, entering, live, target):
        return absorbed_params(attention) - sum(array.size for array in ir.arrays(heads))
    if attention.rows is not None and not np.isin(live, attention.rows).any():
        return -sum(head.query.weight.size + _size(head.query.bias) for head in heads)
    biased = any(head.query.bias is not None for head in heads)
    if biased and target.bias_in_product and projects_once(attention, entering, live, target):
        return sum(len(head.key.weight) + len(head.value.weight) for head in heads)
    return 0


def _size(array: ir.FloatArray | None) -> int:
    return 0 if array is None else int(array.size)
