"""How the blocks of a model will be computed for a target.

Everything here follows from the IR and the target, and is decided once: packing, counting, structure and emission read a
`BlockPlan` and decide nothing themselves, so that they cannot disagree. Whoever adds a way to compute a block adds it here
first.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from slimc import ir
from slimc.targets.target import Target

Projection = Literal["qkv", "q, kv", "absorbed"]
"""Which products make queries, keys and values: one; one for the queries and one for the others; none for the others, whose
matrices are absorbed into those of the queries and the output (`slimc.emit.absorbed`)."""


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """How the attention `node` will be computed.

    Heads: `groups` are computed together, each in a batched attention. A group goes to the Attention operator where
    `operator` says so and it is no head alone; a head alone goes there where its queries are cut into `query_parts` > 1
    parts of one size, which the operator takes for heads. `divisible_queries` is how many queries a head alone would have
    if it were cut so; none where that cannot be done.

    Rows of the stream that enters: `key_rows` are keys, `live_rows` outlive the attention. `query_rows` are those whose
    queries are computed: the live ones first, behind them as many others as it takes to cut them into parts (rows that
    end here, then ghosts, numbered behind all rows). `ghost_rows` zero rows behind the keys stand for the ghosts; the
    product that makes keys and values makes theirs too where `ghosts_projected`, else they are constants.

    Products: see `Projection`. With "qkv" the queries of all rows are computed and `query_rows` are taken from them; their
    bias is added inside the product where `query_bias_in_product`, else once they are cut into heads. With
    `stacked_groups` every group has a product of its own, cut into heads in one piece. With `residual_in_product` the
    output projection adds the residual stream. `rotary_operator` says that queries and keys are turned by the operator for
    it.
    """

    node: ir.Attention
    groups: tuple[tuple[ir.Head, ...], ...]
    operator: bool
    query_parts: int
    divisible_queries: int | None
    key_rows: ir.IndexArray
    live_rows: ir.IndexArray
    query_rows: ir.IndexArray
    ghost_rows: int
    ghosts_projected: bool
    projection: Projection
    query_bias_in_product: bool
    stacked_groups: bool
    residual_in_product: bool
    rotary_operator: bool

    @property
    def prepared(self) -> bool:
        """Whether queries and keys are normalised or turned between their product and the heads, all heads at once."""
        return is_prepared(self.node)

    @property
    def absorbed(self) -> bool:
        """Whether keys and values are never computed."""
        return self.projection == "absorbed"

    @property
    def keys(self) -> int:
        """Keys of every softmax, ghosts included."""
        return len(self.key_rows) + self.ghost_rows

    @property
    def projected_ghosts(self) -> int:
        """Zero rows behind those that keys and values are projected from."""
        return self.ghost_rows if self.ghosts_projected else 0

    @property
    def visible_queries(self) -> ir.BoolArray:
        """Which of the `query_rows` the attention sees; the query of every other is the query bias."""
        return np.isin(self.query_rows, self.key_rows)

    @property
    def head_width(self) -> int:
        """Width of the widest head."""
        return max(map(head_width, self.node.heads))

    def uses_operator(self, heads: int) -> bool:
        """Whether a group of so many heads goes to the Attention operator."""
        return self.operator and (heads > 1 or self.query_parts > 1)


@dataclass(frozen=True, eq=False)
class MlpPlan:
    """How the FFN `node` will be computed: for how many rows, and whether its last product adds the residual stream.

    No row is computed where no channel is left: then it adds the same to every row.
    """

    node: ir.Mlp
    rows: int
    residual_in_product: bool


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """How a block will be computed.

    `rows` count the rows of the stream, of which `branch_rows` enter the branches: fewer than enter the block where it has
    room for so many of the tokens that an image uses (`ir.TokenGate.capacity`). With `scores_tokens` there are tokens to
    choose from. A branch that is a constant or none has no plan.
    """

    rows: ir.BlockRows
    branch_rows: int
    scores_tokens: bool
    attention: AttentionPlan | None
    mlp: MlpPlan | None


def plan_model(model: ir.Model, target: Target) -> tuple[BlockPlan, ...]:
    """How every block of `model` will be computed for `target`."""
    plans, hidden = [], False
    for block, rows in zip(model.blocks, ir.block_rows(model), strict=True):
        if block.select is not None:
            hidden = not block.select.drop
        plans.append(plan_block(block, rows, model.prefix, target, rows_hidden=hidden))
    return tuple(plans)


def emitted_blocks(model: ir.Model) -> tuple[ir.Block, ...]:
    """The blocks that the outputs of `model` depend on: nobody needs those behind the last one that is read."""
    blocks = [-1 if output.block is None else output.block for output in model.outputs]
    return model.blocks if -1 in blocks else model.blocks[: max(blocks) + 1]


def plan_block(
    block: ir.Block, rows: ir.BlockRows, prefix: int, target: Target, *, rows_hidden: bool = False
) -> BlockPlan:
    """How `block` will be computed for `target`, in a stream of `prefix` prefix rows.

    `rows_hidden` says that a selection hides some of the rows from the attention without taking them out of the stream.
    """
    gates = block.gates
    tokens = None if gates is None else gates.tokens
    capacity = None if tokens is None else tokens.capacity
    branch_rows = rows.entering if capacity is None else min(rows.entering, prefix + capacity)
    attention: AttentionPlan | None = None
    if isinstance(block.attention, ir.Attention):
        # Where keys or heads depend on the image, scores are masked and outputs gated: with keys and values, in products.
        by_image = gates is not None or rows_hidden
        attention = _plan_attention(block.attention, branch_rows, ir.live_rows(block, branch_rows), target, by_image)
    return BlockPlan(
        rows=rows,
        branch_rows=branch_rows,
        scores_tokens=tokens is not None and rows.entering > prefix,
        attention=attention,
        mlp=_plan_mlp(block.mlp, block, rows, branch_rows, target) if isinstance(block.mlp, ir.Mlp) else None,
    )


def _plan_mlp(mlp: ir.Mlp, block: ir.Block, rows: ir.BlockRows, branch_rows: int, target: Target) -> MlpPlan:
    if mlp.up.weight.size == 0:
        computed = 0
    elif block.gates is not None and block.gates.tokens_gate_mlp and block.live is None:
        computed = branch_rows
    else:
        computed = rows.leaving if mlp.rows is None else len(mlp.rows)
    return MlpPlan(
        node=mlp,
        rows=computed,
        residual_in_product=_adds_residual(mlp.down.bias, mlp, target),
    )


def _adds_residual(bias: ir.FloatArray | None, branch: ir.Attention | ir.Mlp, target: Target) -> bool:
    """Whether the last product of a branch, which has this bias, adds the residual stream."""
    scaled = branch.residual_scale != 1.0 or branch.layer_scale is not None
    return target.residual_in_product and bias is None and not scaled


def _plan_attention(
    attention: ir.Attention, entering: int, live: ir.IndexArray, target: Target, by_image: bool
) -> AttentionPlan:
    keys, groups = ir.key_rows(attention, entering), _head_groups(attention)
    ghosts = _ghost_rows(len(keys), attention.ghosts, target)
    every_query = _computes_every_query(attention, keys, live, ghosts, target)
    ghosts_projected = ghosts > 0 and (every_query or _projects_ghosts(attention, ghosts, target))
    operator = target.attention_operator and not by_image and not _is_masked(attention)
    divisible: ir.IndexArray | None = None
    if operator and target.query_parts > 1:
        rows = entering + (ghosts if every_query else 0)
        divisible = _divisible_queries(attention, rows, live, target.query_parts)
    absorbed = not by_image and _absorbs(attention, keys, live, target)
    in_parts = not absorbed and divisible is not None and any(len(group) == 1 for group in groups)
    queries = divisible if in_parts and divisible is not None else live
    same_rows = np.array_equal(queries, keys) and not ghosts_projected
    prepared = is_prepared(attention)
    one_product = every_query or (same_rows and (prepared or _same_biases(attention)))
    return AttentionPlan(
        node=attention,
        groups=groups,
        operator=operator and not absorbed,
        query_parts=target.query_parts if in_parts else 1,
        divisible_queries=None if divisible is None else len(divisible),
        key_rows=keys,
        live_rows=live,
        query_rows=queries,
        ghost_rows=ghosts,
        ghosts_projected=ghosts_projected,
        projection="absorbed" if absorbed else "qkv" if one_product else "q, kv",
        query_bias_in_product=target.bias_in_product or not every_query or prepared,
        stacked_groups=target.stacked_groups and every_query and not prepared and _can_be_stacked(groups),
        residual_in_product=_adds_residual(attention.output_bias, attention, target),
        rotary_operator=target.attention_operator and _is_turned(attention),
    )


def _head_groups(attention: ir.Attention) -> tuple[tuple[ir.Head, ...], ...]:
    """Heads by group: as packed, else runs of equal widths."""
    if attention.groups is None:
        runs = itertools.groupby(attention.heads, key=lambda h: (h.query.weight.shape[0], h.value.weight.shape[0]))
        return tuple(tuple(run) for _, run in runs)
    heads = iter(attention.heads)
    return tuple(tuple(itertools.islice(heads, size)) for size in attention.groups)


def without_empty_heads(pool: ir.LatentPool) -> ir.LatentPool:
    """`pool` without heads that have no value, and so add nothing."""
    return replace(pool, heads=tuple(head for head in pool.heads if len(head.value.weight)))


def latent_runs(pool: ir.LatentPool) -> tuple[tuple[ir.LatentHead, ...], ...]:
    """The heads of a latent pool that are computed together: those of equal widths that follow each other."""
    runs = itertools.groupby(pool.heads, key=lambda head: (len(head.query), len(head.value.weight)))
    return tuple(tuple(run) for _, run in runs)


def _ghost_rows(keys: int, ghosts: int, target: Target) -> int:
    """Zero rows behind `keys` keys that stand for `ghosts` ghosts; none where there are no ghosts."""
    if ghosts <= target.exact_ghosts:
        return ghosts
    return -keys % target.key_multiple or target.key_multiple


def _projects_ghosts(attention: ir.Attention, ghosts: int, target: Target) -> bool:
    """Whether the product that makes keys and values makes those of `ghosts` zero rows too."""
    channels = sum(head.key.weight.size + head.value.weight.size for head in attention.heads)
    return ghosts * channels <= target.spare_query_macs


def _computes_every_query(
    attention: ir.Attention, keys: ir.IndexArray, live: ir.IndexArray, ghosts: int, target: Target
) -> bool:
    """Whether the product that makes the keys and values of `keys` and of zero rows makes queries of all of them too.

    Nobody reads those of rows that are not `live`.
    """
    biased = any(head.key.bias is not None for head in attention.heads) and not is_prepared(attention)
    if biased or not np.isin(live, keys).all():
        return False
    channels = sum(head.query.weight.size for head in attention.heads)
    return (len(keys) + ghosts - len(live)) * channels <= target.spare_query_macs


def _same_biases(attention: ir.Attention) -> bool:
    """Whether all or none of queries, keys and values have biases."""
    linears = [linear for head in attention.heads for linear in (head.query, head.key, head.value)]
    return len({linear.bias is not None for linear in linears}) == 1


def is_prepared(attention: ir.Attention) -> bool:
    """Whether queries and keys are normalised or turned before they meet."""
    return attention.query_norm is not None or attention.key_norm is not None or _is_turned(attention)


def _is_turned(attention: ir.Attention) -> bool:
    return any(head.rotation is not None for head in attention.heads)


def _is_masked(attention: ir.Attention) -> bool:
    return any(head.mask is not None or head.value_mask is not None for head in attention.heads)


def _can_be_stacked(groups: tuple[tuple[ir.Head, ...], ...]) -> bool:
    """Whether there are several groups, in each of which queries, keys and values have one width."""
    return len(groups) > 1 and all(
        len(head.query.weight) == len(head.value.weight) for group in groups for head in group
    )


def _absorbs(attention: ir.Attention, keys: ir.IndexArray, live: ir.IndexArray, target: Target) -> bool:
    """Whether absorbing the key and value matrices is exact and saves work."""
    heads = attention.heads
    if not target.absorb or not heads or not np.isin(live, keys).all() or attention.scale != 1.0:
        return False
    if is_prepared(attention) or attention.output_norm is not None or _is_masked(attention):
        return False
    if any(head.key.bias is not None or head.value.bias is not None for head in heads):
        return False
    dim, width = heads[0].query.weight.shape[1], max(map(head_width, heads))
    usual: int = dim * len(keys) * sum(len(h.key.weight) + len(h.value.weight) for h in heads)
    return bool(2 * len(live) * len(heads) * dim * (len(keys) + 2 * width) < usual)


def head_width(head: ir.Head) -> int:
    """Channels of `head` that a batched product pads it to at least."""
    return max(len(head.query.weight), len(head.value.weight))


def _divisible_queries(attention: ir.Attention, rows: int, live: ir.IndexArray, parts: int) -> ir.IndexArray | None:
    """The `live` rows and as many others of `rows` as it takes to cut them into `parts`; none where there are too few."""
    missing = -len(live) % parts
    if missing == 0:
        return live
    if attention.rows is not None:
        return None
    others = np.setdiff1d(np.arange(rows), live)[:missing]
    return np.concatenate([live, others]) if len(others) == missing else None
