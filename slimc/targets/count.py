"""Multiply-accumulates and parameters of a model, as the emitted graph will have them.

MACs are those of the Conv, Gemm and MatMul nodes for one image; parameters are the float initializers. Both are counted from
the IR, so that they are known before anything is emitted; a test counts them again in the ONNX file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slimc import ir
from slimc.emit.absorbed import absorbed_macs, absorbed_params
from slimc.targets.plan import (
    absorbs,
    asking_rows,
    ghost_rows,
    head_groups,
    projects_ghosts,
    projects_once,
    rules_for,
)
from slimc.targets.target import Target


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


@dataclass(frozen=True)
class BranchMacs:
    """MACs of one block for one image: of its decisions, and of its branches when they run."""

    decisions: int
    attention: int
    mlp: int

    @property
    def total(self) -> int:
        """MACs when everything runs."""
        return self.decisions + self.attention + self.mlp


def block_macs(model: ir.Model, target: Target) -> tuple[int, ...]:
    """MACs of every block for one image, every branch running."""
    return tuple(macs.total for macs in branch_macs(model, target))


def branch_macs(model: ir.Model, target: Target) -> tuple[BranchMacs, ...]:
    """MACs of the decisions and branches of every block for one image."""
    counts = []
    for block, rows in zip(model.blocks, ir.block_rows(model), strict=True):
        attention, mlp = 0, 0
        used = used_rows(block, rows.entering, model.prefix)
        if isinstance(block.attention, ir.Attention):
            live = ir.live_rows(block, used)
            attention = _attention_macs(block.attention, used, live, rules_for(block, target))
        if isinstance(block.mlp, ir.Mlp) and block.mlp.up.weight.size:
            gathered = block.gates is not None and block.gates.tokens_gate_mlp and block.live is None
            computed = used if gathered else rows.leaving if block.mlp.rows is None else len(block.mlp.rows)
            mlp = computed * (block.mlp.up.weight.size + block.mlp.down.weight.size)
        counts.append(BranchMacs(_decision_macs(block.gates, rows.entering, model.prefix), attention, mlp))
    return tuple(counts)


def used_rows(block: ir.Block, entering: int, prefix: int) -> int:
    """Rows that the branches of `block` compute at most."""
    gate = None if block.gates is None else block.gates.tokens
    return entering if gate is None or gate.capacity is None else min(entering, prefix + gate.capacity)


def _decision_macs(gates: ir.Gates | None, entering: int, prefix: int) -> int:
    if gates is None:
        return 0
    macs = sum(linear.weight.size for linear in (gates.attention, gates.mlp, gates.heads) if linear is not None)
    scored = gates.tokens is not None and entering > prefix
    return macs + (entering * gates.tokens.score.weight.size if gates.tokens is not None and scored else 0)


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
    for stage in model.embedding.stem:
        height, width = ((side - 1) // stage.stride + 1 for side in (height, width))
        if isinstance(stage, ir.Convolution):
            macs += height * width * stage.weight.size
        elif stage.performer is not None:
            macs += height * width * _performer_macs(stage.performer)
    return macs + (ir.embedded_rows(model) - model.prefix) * model.embedding.patch.weight.size


def _performer_macs(performer: ir.Performer) -> int:
    """MACs for one row; the numerator and the denominator are one product."""
    linears = (performer.key, performer.query, performer.value, performer.output, performer.up, performer.down)
    m, width = performer.features.shape
    return int(sum(linear.weight.size for linear in linears) + 2 * m * width + 2 * m * (width + 1))


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
    keys = ir.key_rows(attention, entering)
    columns = len(keys) + ghost_rows(len(keys), attention.ghosts, target)
    once = projects_once(attention, entering, live, target)
    projected = columns if once or projects_ghosts(attention, len(keys), target) else len(keys)
    asking = asking_rows(attention, entering, live, target)
    computed_queries = columns if once else int(np.isin(asking, keys).sum())
    macs = 0
    for group in head_groups(attention):
        for head in group:
            d_qk, d_v = head.query.weight.shape[0], head.value.weight.shape[0]
            dim = head.query.weight.shape[1]
            macs += dim * (computed_queries * d_qk + projected * (d_qk + d_v) + len(live) * d_v)
            macs += len(asking) * columns * (d_qk + d_v)
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
            used = used_rows(block, rows.entering, model.prefix)
            live = ir.live_rows(block, used)
            params += _projection_params(block.attention, used, live, rules_for(block, target))
    return params - _unused_embedding(model) - _unused_in_gated(model)


def _unused_embedding(model: ir.Model) -> int:
    """Weights of a patch embedding that embeds no patch: they are not emitted."""
    patch = model.embedding.patch
    return 0 if ir.embedded_rows(model) > model.prefix else patch.weight.size + _size(patch.bias)


def _unused_in_gated(model: ir.Model) -> int:
    """Arrays of blocks with gates that are not emitted: norms that two nodes share, and those of branches without work."""
    unused = 0
    for block, rows in zip(model.blocks, ir.block_rows(model), strict=True):
        if block.gates is None:
            continue
        scored = rows.entering > model.prefix
        if block.gates.tokens is not None and not scored:
            unused += _params(block.gates.tokens)
        if isinstance(block.attention, ir.Attention):
            shared = block.gates.tokens is not None and scored
            unused += _params(block.attention.norm) if shared or not block.attention.heads else 0
        if isinstance(block.mlp, ir.Mlp) and not block.mlp.up.weight.size:
            unused += _params(block.mlp) - model.dim
    return unused


def _params(node: object) -> int:
    return sum(array.size for array in ir.arrays(node))


def _projection_params(attention: ir.Attention, entering: int, live: ir.IndexArray, target: Target) -> int:
    """Parameters that the projections have beyond the heads' own: zero biases within a product, minus unused queries.

    Where every query is constant, its bias becomes a Constant node and its weights are not needed.
    """
    heads = attention.heads
    if absorbs(attention, entering, live, target):
        return absorbed_params(attention) - sum(array.size for array in ir.arrays(heads))
    queries, keys, values = ([getattr(h, kind) for h in heads] for kind in ("query", "key", "value"))
    if attention.rows is not None and not np.isin(live, attention.rows).any():
        return _zero_biases(keys + values) - sum(array.size for array in ir.arrays(tuple(queries)))
    once = target.bias_in_product and projects_once(attention, entering, live, target)
    products = [queries + keys + values] if once else [queries, keys + values]
    return sum(_zero_biases(linears) for linears in products)


def _zero_biases(linears: Sequence[ir.Linear]) -> int:
    """Entries of the bias of one product of `linears` that stand for no bias."""
    missing = sum(len(linear.weight) for linear in linears if linear.bias is None)
    return missing if any(linear.bias is not None for linear in linears) else 0


def _size(array: ir.FloatArray | None) -> int:
    return 0 if array is None else int(array.size)
