"""Multiply-accumulates and parameters of a model, as the emitted graph will have them.

MACs are those of the Conv, Gemm and MatMul nodes for one image; parameters are the float initializers. Both are counted from
the IR, so that they are known before anything is emitted; a test counts them again in the ONNX file.
"""

from __future__ import annotations

from dataclasses import dataclass

from slimc import ir
from slimc.targets.count_parts import mlp_macs, mlp_params, params_of, size_of, zero_biases
from slimc.targets.count_readout import readout_macs, readout_params
from slimc.targets.plan import AttentionPlan, BlockPlan, emitted_blocks, plan_model
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
    emitted = len(emitted_blocks(model))
    blocks = sum(block_macs(model, target)[:emitted]) + sum(selection_macs(model)[:emitted])
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
            mlp = plan.mlp.rows * mlp_macs(plan.mlp.node)
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
    return readout_macs(model)


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
    """Parameters of `model`: its arrays without masks and tables of rotations, and what products need besides."""
    blocks, plans = emitted_blocks(model), plan_model(model, target)
    params = _embedding_params(model) + readout_params(model)
    for block, plan in zip(blocks, plans, strict=False):
        params += params_of(block) - _unused_in_gated(block, plan)
        if plan.attention is not None:
            params += _projection_params(plan.attention, model.dim) - _constants(plan.attention.node)
        if plan.mlp is not None:
            params += mlp_params(plan.mlp.node) - params_of(plan.mlp.node)
            params += model.dim if plan.mlp.rows < plan.rows.leaving and plan.mlp.node.rows is not None else 0
    return params


def _embedding_params(model: ir.Model) -> int:
    """Parameters of the embedding, less those of patches where none is embedded."""
    embedding, params = model.embedding, params_of(model.embedding)
    if ir.embedded_rows(model) > model.prefix:
        return params
    return params - params_of(embedding.patch) - params_of(embedding.patch_norm)


def _constants(attention: ir.Attention) -> int:
    """Entries of the masks and the tables of rotations, which are no parameters."""
    heads = attention.heads
    return size_of(attention.token_mask) + params_of(tuple((h.mask, h.value_mask, h.rotation) for h in heads))


def _unused_in_gated(block: ir.Block, plan: BlockPlan) -> int:
    """Arrays of a block with gates that are not emitted: a norm that two nodes share, and those of branches without work."""
    if block.gates is None:
        return 0
    unused = 0
    if block.gates.tokens is not None and not plan.scores_tokens:
        unused += params_of(block.gates.tokens)
    if plan.attention is not None and (plan.scores_tokens or not plan.attention.node.heads):
        unused += params_of(plan.attention.node.norm)
    if plan.mlp is not None and plan.mlp.rows == 0:
        unused += params_of(plan.mlp.node) - len(plan.mlp.node.down.weight)
    return unused


def _projection_params(plan: AttentionPlan, dim: int) -> int:
    """Parameters that the projections have beyond the heads' own: zero biases within a product, minus unused queries.

    Where every query is constant, its bias becomes a Constant node and its weights are not needed. An absorbed attention
    has four padded matrices a head, and the query bias.
    """
    heads = plan.node.heads
    queries, keys, values = ([getattr(head, kind) for head in heads] for kind in ("query", "key", "value"))
    if plan.absorbed:
        biased = any(query.bias is not None for query in queries)
        return len(heads) * plan.head_width * (4 * dim + (1 if biased else 0)) - params_of(heads)
    if not plan.visible_queries.any():
        return zero_biases(keys + values) - params_of(tuple(queries))
    if plan.projection != "qkv":
        return zero_biases(queries) + zero_biases(keys + values)
    if plan.query_bias_in_product:
        return zero_biases(queries + keys + values)
    products = plan.groups if plan.stacked_groups else (heads,)
    inside = sum(zero_biases(_without_query_biases(group)) for group in products)
    return inside - sum(size_of(query.bias) for query in queries) + sum(map(_query_biases, plan.groups))


def _without_query_biases(heads: tuple[ir.Head, ...]) -> list[ir.Linear]:
    """The layers of a product that adds no bias to the queries."""
    return [part for head in heads for part in (ir.Linear(head.query.weight), head.key, head.value)]


def _query_biases(heads: tuple[ir.Head, ...]) -> int:
    """Entries of what is added to the queries of a group."""
    biased = any(head.query.bias is not None for head in heads)
    return sum(len(head.query.weight) for head in heads) if biased else 0
