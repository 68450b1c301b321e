"""Emission of the attention branch.

Ghosts: n zero rows among the keys of a softmax are p >= 1 of them whose scores get the bias log(n / p); p rounds the key
count to what the target likes. With p = n there is no bias to add.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from slimc import ir
from slimc.emit.absorbed import emit_absorbed
from slimc.emit.branch import LastProduct, add_last_product, last_product
from slimc.emit.graph import GraphBuilder, Value, dims
from slimc.emit.norms import normalise
from slimc.emit.projection import Operands, ghost_bias, project
from slimc.emit.stream import Stream
from slimc.ir.interpret.attention import ghost_operands
from slimc.targets.plan import AttentionPlan


@dataclass(frozen=True)
class HeadGates:
    """Decisions that an image makes about heads: `times(x, numbers, name)` multiplies the columns of x by those `numbers`.

    -1 is always on. A head that is off gives zero or every query's own value.
    """

    times: Callable[[Value, ir.IndexArray, str], Value]
    off_heads: Literal["zero", "value"]


def emit_attention(
    graph: GraphBuilder,
    plan: AttentionPlan,
    stream: Stream,
    block: str,
    key_bias: Value | None = None,
) -> Stream:
    """The live rows of `stream` with the branch added; `key_bias` [B, 1, 1, keys] is added to the scores."""
    attention, name = plan.node, f"{block}.attn"
    normalised = stream.replace(normalise(graph, stream.matrix, attention.norm, f"{block}.norm1"))
    if attention.token_mask is not None:
        column = normalised.column(graph, attention.token_mask)
        normalised = normalised.replace(graph.mul(normalised.matrix, column, f"{block}.norm1.mask"))
    if plan.absorbed:
        joined, weight = emit_absorbed(graph, plan, normalised, name)
    else:
        joined = _attend_groups(graph, plan, normalised, name, key_bias)
        weight = _output_weight(attention)
    residual = stream.take(graph, plan.live_rows, f"{block}.live")
    last = _last(attention, weight, name)
    return add_last_product(graph, joined, last, residual, name, residual_in_product=plan.residual_in_product)


def emit_gated_attention(
    graph: GraphBuilder,
    plan: AttentionPlan,
    normalised: Stream,
    name: str,
    key_bias: Value | None,
    gates: HeadGates,
) -> Value:
    """What the branch adds to the live rows [B * live, C], from normalised rows and under the decisions `gates`.

    `key_bias` [B, 1, 1, keys] is added to the scores.
    """
    attention = plan.node
    joined = _attend_groups(graph, plan, normalised, name, key_bias, gates)
    return last_product(graph, joined, _last(attention, _output_weight(attention), name), name)


def _last(attention: ir.Attention, weight: ir.FloatArray, name: str) -> LastProduct:
    """The output projection, with this weight."""
    output = ir.Linear(weight, attention.output_bias)
    return LastProduct(output, f"{name}.proj", attention.residual_scale, attention.layer_scale)


def _output_weight(attention: ir.Attention) -> ir.FloatArray:
    """The weight of the output projection, of the heads' outputs side by side: [C, sum of widths]."""
    return np.concatenate([head.output for head in attention.heads], axis=1)


def _attend_groups(
    graph: GraphBuilder,
    plan: AttentionPlan,
    normalised: Stream,
    name: str,
    key_bias: Value | None,
    gates: HeadGates | None = None,
) -> Value:
    """What all heads mix: [B * live, sum of widths]; `key_bias` is added to the scores, `gates` switch heads off."""
    operands = project(graph, plan, normalised, name)
    mixed = []
    for i, (group, operand) in enumerate(zip(plan.groups, operands, strict=True)):
        label = name if len(plan.groups) == 1 else f"{name}.group{i}"
        if plan.uses_operator(len(group)):
            mixed.append(_attend_by_operator(graph, plan, group, operand, label))
        else:
            mixed.append(_attend_by_products(graph, plan, group, operand, label, key_bias))
    joined = _join(graph, mixed, plan.groups, name)
    live = len(plan.live_rows)
    if len(plan.query_rows) > live:
        joined = normalised.replace(joined).take(graph, np.arange(live), f"{name}.live").matrix
    if gates is not None:
        joined = _gate(graph, gates, plan, operands, joined, name)
    return _normalised(graph, plan, joined, name)


def _normalised(graph: GraphBuilder, plan: AttentionPlan, joined: Value, name: str) -> Value:
    """What the heads mix, side by side, after the norm over all of it and, once more, the values' masks."""
    norm, heads = plan.node.output_norm, [head for group in plan.groups for head in group]
    if norm is None:
        return joined
    joined = normalise(graph, joined, norm, f"{name}.norm")
    if all(head.value_mask is None for head in heads):
        return joined
    mask = np.concatenate([_mask(head.value_mask, len(head.value.weight)) for head in heads]).astype(np.float32)
    return graph.mul(joined, graph.constant(mask, "mask"), f"{name}.norm.mask")


def _attend_by_operator(
    graph: GraphBuilder,
    plan: AttentionPlan,
    group: tuple[ir.Head, ...],
    operands: Operands,
    name: str,
) -> Value:
    """softmax(q k^T) v of one group by the Attention operator.

    A head alone is as many heads as there are parts of its queries, which all have the same keys and values: query i is
    part i modulo their number, so that cutting and joining them moves nothing.
    """
    query, key, value = operands.query, operands.key, operands.value
    if plan.ghost_rows and not plan.ghosts_projected:
        key, value = _with_ghosts(graph, plan, group, key, value, name, transposed=False)
    heads, (batch, count, width) = len(group), dims(query)
    parts = plan.query_parts if heads == 1 else 1
    query = graph.reshape(query, (batch, count // parts, parts * width), f"{name}.q.parts")
    bias = None
    if plan.ghost_rows != plan.node.ghosts:
        scores = (batch, heads * parts, count // parts, dims(key)[1])
        bias = ghost_bias(graph, scores, plan.node.ghosts, plan.ghost_rows, full=True)
    whole = f"{name}.mixed" if parts == 1 else f"{name}.mixed.parts"
    mixed = graph.attention(query, key, value, bias, (heads * parts, heads), plan.node.scale, whole)
    return graph.reshape(mixed, (batch, count, dims(value)[2]), f"{name}.mixed")


def _attend_by_products(
    graph: GraphBuilder,
    plan: AttentionPlan,
    group: tuple[ir.Head, ...],
    operands: Operands,
    name: str,
    key_bias: Value | None,
) -> Value:
    """softmax(q k^T + key_bias) v of one group, its heads where its operands have them."""
    query, key, value = operands.query, operands.key, operands.value
    if any(head.mask is not None for head in group) and not plan.prepared:
        query, key = _masked(graph, group, query, key, name)
    if any(head.value_mask is not None for head in group):
        mask = _masks([_mask(head.value_mask, len(head.value.weight)) for head in group])
        value = graph.mul(value, graph.constant(mask, "mask"), f"{name}.v.mask")
    if plan.node.scale != 1.0:
        query = graph.scale(query, plan.node.scale, f"{name}.q.scale")
    if plan.ghost_rows and not plan.ghosts_projected:
        key, value = _with_ghosts(graph, plan, group, key, value, name, transposed=True)
    scores = graph.matmul(query, key, f"{name}.scores")
    if plan.ghost_rows != plan.node.ghosts:
        bias = ghost_bias(graph, dims(scores), plan.node.ghosts, plan.ghost_rows)
        scores = graph.add(scores, bias, f"{name}.scores.ghosts")
    if key_bias is not None:
        one_head = (*dims(scores)[:-2], 1, dims(scores)[-1])
        bias = key_bias if len(group) > 1 else graph.reshape(key_bias, one_head, f"{name}.hiding")
        scores = graph.add(scores, bias, f"{name}.scores.hidden")
    return graph.matmul(graph.softmax(scores, f"{name}.softmax"), value, f"{name}.mixed")


def _join(graph: GraphBuilder, mixed: list[Value], groups: tuple[tuple[ir.Head, ...], ...], name: str) -> Value:
    """The groups' matrices side by side: [B * N, sum of widths]."""
    if any(len(dims(matrices)) == 4 for matrices in mixed):
        labels = [f"{name}.group{i}" if len(groups) > 1 else name for i in range(len(groups))]
        mixed = [_flat(graph, *each) for each in zip(mixed, groups, labels, strict=True)]
    joined = graph.concat(mixed, len(dims(mixed[0])) - 1, f"{name}.joined")
    *rows, width = dims(joined)
    return graph.reshape(joined, (math.prod(rows), width), f"{name}.joined.flat")


def _flat(graph: GraphBuilder, matrices: Value, group: tuple[ir.Head, ...], name: str) -> Value:
    """A group's matrices, its heads where its operands have them, side by side: [B * N, H * dv]."""
    if len(dims(matrices)) == 4:
        matrices = graph.transpose(matrices, (0, 2, 1, 3), f"{name}.merged")
    width = sum(head.value.weight.shape[0] for head in group)
    return graph.reshape(matrices, (math.prod(dims(matrices)) // width, width), f"{name}.flat")


def _gate(
    graph: GraphBuilder,
    gates: HeadGates,
    plan: AttentionPlan,
    operands: list[Operands],
    joined: Value,
    name: str,
) -> Value:
    """`joined` [B * Nq, channels] where a head is on; zero, or the queries' own values, where it is off."""
    heads = [head for group in plan.groups for head in group]
    numbers = np.concatenate([np.full(len(h.value.weight), -1 if h.gate is None else h.gate) for h in heads])
    if gates.off_heads == "zero" or (numbers < 0).all():
        return gates.times(joined, numbers, f"{name}.gated")
    parts = []
    for i, (group, operand) in enumerate(zip(plan.groups, operands, strict=True)):
        rows = graph.take(operand.value, plan.live_rows, len(dims(operand.value)) - 2, f"{name}.own.{i}")
        parts.append(_flat(graph, rows, group, f"{name}.own.{i}"))
    own = graph.concat(parts, 1, f"{name}.own")
    difference = graph.op("Sub", [joined, own], f"{name}.difference", dims(joined))
    return graph.add(own, gates.times(difference, numbers, f"{name}.difference.gated"), f"{name}.gated")


def _masked(
    graph: GraphBuilder, group: tuple[ir.Head, ...], query: Value, key: Value, name: str
) -> tuple[Value, Value]:
    """Query and key multiplied by the heads' masks."""
    mask = _masks([_mask(head.mask, len(head.query.weight)) for head in group])
    across, down = graph.constant(mask, "mask"), graph.constant(mask.swapaxes(-1, -2), "mask")
    return graph.mul(query, across, f"{name}.q.mask"), graph.mul(key, down, f"{name}.k.mask")


def _mask(mask: ir.FloatArray | None, width: int) -> ir.FloatArray:
    return np.ones(width) if mask is None else mask


def _masks(masks: list[ir.FloatArray]) -> ir.FloatArray:
    """The masks of a group's heads, as they multiply its rows."""
    mask = np.stack(masks)[:, None, :].astype(np.float32)
    return mask if len(masks) > 1 else mask[0]


def _with_ghosts(
    graph: GraphBuilder,
    plan: AttentionPlan,
    group: tuple[ir.Head, ...],
    key: Value,
    value: Value,
    name: str,
    *,
    transposed: bool,
) -> tuple[Value, Value]:
    """Keys, perhaps `transposed`, and values with the rows of ghosts appended: what a zero row gives."""
    operands = [ghost_operands(plan.node, head) for head in group]
    keys, values = (
        _repeated(list(vectors), plan.ghost_rows, dims(x))
        for vectors, x in zip(zip(*operands, strict=True), (key, value), strict=True)
    )
    axis = len(dims(key)) - 2
    more_keys = graph.constant(keys.swapaxes(-1, -2) if transposed else keys, "ghosts")
    key = graph.concat([key, more_keys], axis + 1 if transposed else axis, f"{name}.k.ghosts")
    return key, graph.concat([value, graph.constant(values, "ghosts")], axis, f"{name}.v.ghosts")


def _repeated(vectors: list[ir.FloatArray], rows: int, shape: tuple[int, ...]) -> ir.FloatArray:
    """`rows` times one vector a head of a group, behind the leading axes of `shape`."""
    one = np.stack(vectors)[:, None, :] if len(shape) == 4 else np.concatenate(vectors)[None, :]
    whole = np.broadcast_to(one, (*shape[: len(shape) - one.ndim], *one.shape))
    return np.repeat(whole, rows, axis=-2).astype(np.float32)
