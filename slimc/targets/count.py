"""Multiply-accumulates and parameters of a model, as the emitted graph will have them.

MACs are those of the Conv, Gemm and MatMul nodes for one image; parameters are the float initializers. Both are counted from
the IR, so that they are known before anything is emitted; a test counts them again in the ONNX file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slimc import ir
from slimc.targets.plan import AttentionPlan, BlockPlan, plan_model
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
    for block, plan in zip(model.blocks, plan_model(model, target), strict=True):
        attention, mlp = 0, 0
        if plan.attention is not None:
            attention = _attention_macs(plan.attention, model.dim)
        if plan.mlp is not None:
            mlp = plan.mlp.rows * (plan.mlp.node.up.weight.size + plan.mlp.node.down.weight.size)
        scored_rows = plan.rows.entering if plan.scores_tokens else 0
        counts.append(BranchMacs(_decision_macs(block.gates, scored_rows), attention, mlp))
    return tuple(counts)


def _decision_macs(gates: ir.Gates | None, scored_rows: int) -> int:
    if gates is None:
        return 0
    macs = sum(linear.weight.size for linear in (gates.attention, gates.mlp, gates.heads) if linear is not None)
    return macs + (scored_rows * gates.tokens.score.weight.size if gates.tokens is not None else 0)


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


def _attention_macs(plan: AttentionPlan, dim: int) -> int:
    if plan.absorbed:
        return len(plan.query_rows) * len(plan.node.heads) * dim * (4 * plan.head_width + 2 * plan.keys)
    projected = len(plan.key_rows) + plan.projected_ghosts
    queries = projected if plan.projection == "qkv" else int(plan.visible_queries.sum())
    macs = 0
    for head in plan.node.heads:
        d_qk, d_v = head.query.weight.shape[0], head.value.weight.shape[0]
        macs += dim * (queries * d_qk + projected * (d_qk + d_v) + len(plan.live_rows) * d_v)
        macs += len(plan.query_rows) * plan.keys * (d_qk + d_v)
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
    plans = plan_model(model, target)
    params += sum(_projection_params(plan.attention, model.dim) for plan in plans if plan.attention is not None)
    unused = sum(_unused_in_gated(block, plan) for block, plan in zip(model.blocks, plans, strict=True))
    return params - _unused_embedding(model) - unused


def _unused_embedding(model: ir.Model) -> int:
    """Weights of a patch embedding that embeds no patch: they are not emitted."""
    patch = model.embedding.patch
    return 0 if ir.embedded_rows(model) > model.prefix else patch.weight.size + _size(patch.bias)


def _unused_in_gated(block: ir.Block, plan: BlockPlan) -> int:
    """Arrays of a block with gates that are not emitted: a norm that two nodes share, and those of branches without work."""
    if block.gates is None:
        return 0
    unused = 0
    if block.gates.tokens is not None and not plan.scores_tokens:
        unused += _params(block.gates.tokens)
    if plan.attention is not None and (plan.scores_tokens or not plan.attention.node.heads):
        unused += _params(plan.attention.node.norm)
    if plan.mlp is not None and plan.mlp.rows == 0:
        unused += _params(plan.mlp.node) - len(plan.mlp.node.down.weight)
    return unused


def _params(node: object) -> int:
    return sum(array.size for array in ir.arrays(node))


def _projection_params(plan: AttentionPlan, dim: int) -> int:
    """Parameters that the projections have beyond the heads' own: zero biases within a product, minus unused queries.

    Where every query is constant, its bias becomes a Constant node and its weights are not needed. An absorbed attention
    has four padded matrices a head, and the query bias.
    """
    heads = plan.node.heads
    queries, keys, values = ([getattr(head, kind) for head in heads] for kind in ("query", "key", "value"))
    if plan.absorbed:
        biased = any(query.bias is not None for query in queries)
        return len(heads) * plan.head_width * (4 * dim + (1 if biased else 0)) - _params(heads)
    if not plan.visible_queries.any():
        return _zero_biases(keys + values) - _params(tuple(queries))
    one_product = plan.projection == "qkv" and plan.query_bias_in_product
    products = [queries + keys + values] if one_product else [queries, keys + values]
    return sum(_zero_biases(linears) for linears in products)


def _zero_biases(linears: Sequence[ir.Linear]) -> int:
    """Entries of the bias of one product of `linears` that stand for no bias."""
    missing = sum(len(linear.weight) for linear in linears if linear.bias is None)
    return missing if any(linear.bias is not None for linear in linears) else 0


def _size(array: ir.FloatArray | None) -> int:
    return 0 if array is None else int(array.size)
