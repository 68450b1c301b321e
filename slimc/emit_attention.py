"""Emission of the attention branch.

Ghosts: n zero keys with zero values in a softmax are p >= 1 zero rows appended to keys and values whose scores get the bias
log(n / p); p rounds the key count to what the target likes. With p = n there is no bias to add.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slimc import ir
from slimc.graph import GraphBuilder, Value, dims
from slimc.stream import Stream
from slimc.target import Target


@dataclass(frozen=True)
class _Operands:
    """Inputs of one group's attention: query [B, H, Nq, d], key (transposed) [B, H, d, Nk], value [B, H, Nk, dv].

    The last `ghost_rows` of the keys stand for ghosts already.
    """

    query: Value
    key: Value
    value: Value
    ghost_rows: int = 0


def emit_attention(
    graph: GraphBuilder, attention: ir.Attention, stream: Stream, live: ir.IndexArray, block: str, target: Target
) -> Value:
    """What the branch adds to the `live` rows of `stream`: [B * live, C]."""
    name = f"{block}.attn"
    normalised = stream.replace(graph.layer_norm(stream.matrix, attention.norm, f"{block}.norm1", f"{block}.norm1"))
    if attention.token_mask is not None:
        column = normalised.column(graph, attention.token_mask)
        normalised = normalised.replace(graph.mul(normalised.matrix, column, f"{block}.norm1.mask"))
    groups = head_groups(attention)
    if target.one_projection and _one_product(attention, live, stream.rows):
        operands = _project_once(graph, attention, groups, normalised, live, name, target)
    else:
        operands = _project(graph, attention, groups, normalised, live, name)
    mixed = []
    for i, (group, operand) in enumerate(zip(groups, operands, strict=True)):
        label = name if len(groups) == 1 else f"{name}.group{i}"
        mixed.append(_mix(graph, attention, group, operand, label, target))
    joined = graph.concat(mixed, 1, f"{name}.joined")
    weight = np.concatenate([head.output for head in attention.heads], axis=1)
    bias = None if attention.output_bias is None else graph.parameter(f"{name}.proj.bias", attention.output_bias)
    branch = graph.gemm(joined, graph.parameter(f"{name}.proj.weight", weight), bias, f"{name}.proj")
    return branch if attention.residual_scale == 1.0 else graph.scale(branch, attention.residual_scale, f"{name}.scale")


def head_groups(attention: ir.Attention) -> list[tuple[ir.Head, ...]]:
    """Heads by group: as packed, else runs of equal widths."""
    if attention.groups is None:
        runs = itertools.groupby(attention.heads, key=lambda h: (h.query.weight.shape[0], h.value.weight.shape[0]))
        return [tuple(run) for _, run in runs]
    heads = iter(attention.heads)
    return [tuple(itertools.islice(heads, size)) for size in attention.groups]


def _project(
    graph: GraphBuilder,
    attention: ir.Attention,
    groups: Sequence[tuple[ir.Head, ...]],
    normalised: Stream,
    live: ir.IndexArray,
    name: str,
) -> list[_Operands]:
    """Queries, keys and values of every group: one Gemm for all three where they read the same rows with like biases."""
    keys = np.arange(normalised.rows) if attention.rows is None else attention.rows
    seen = np.isin(live, keys)
    parts = {
        "q": [[head.query for head in group] for group in groups],
        "k": [[head.key for head in group] for group in groups],
        "v": [[head.value for head in group] for group in groups],
    }
    key_rows = normalised.take(graph, keys, f"{name}.keys")
    biases = {linear.bias is not None for lists in parts.values() for group in lists for linear in group}
    if np.array_equal(live, keys) and len(biases) == 1:
        outputs = _fused(graph, parts, "qkv", key_rows, name)
        queries = outputs["q"]
    else:
        outputs = _fused(graph, {kind: parts[kind] for kind in "kv"}, "kv", key_rows, name)
        queries = _queries(graph, parts["q"], normalised, live, seen, name)
    return [
        _Operands(
            query=_heads(graph, q, len(group), normalised.batch, False, f"{name}.q.{i}"),
            key=_heads(graph, k, len(group), normalised.batch, True, f"{name}.k.{i}"),
            value=_heads(graph, v, len(group), normalised.batch, False, f"{name}.v.{i}"),
        )
        for i, (group, q, k, v) in enumerate(zip(groups, queries, outputs["k"], outputs["v"], strict=True))
    ]


def _one_product(attention: ir.Attention, live: ir.IndexArray, rows: int) -> bool:
    """Whether one product yields everything: every row that asks is asked, and only queries have biases."""
    keys = np.arange(rows) if attention.rows is None else attention.rows
    biased = any(linear.bias is not None for head in attention.heads for linear in (head.key, head.value))
    return bool(np.isin(live, keys).all()) and not biased


def _project_once(
    graph: GraphBuilder,
    attention: ir.Attention,
    groups: Sequence[tuple[ir.Head, ...]],
    normalised: Stream,
    live: ir.IndexArray,
    name: str,
    target: Target,
) -> list[_Operands]:
    """As `_project`, with one Gemm for all rows; queries are selected and get their biases once cut into heads.

    The ghosts' zero keys and values come out of the same Gemm, as zero rows among its inputs.
    """
    keys = np.arange(normalised.rows) if attention.rows is None else attention.rows
    order = np.argsort(keys)
    asking = order[np.searchsorted(keys, live, sorter=order)]
    parts = {
        "q": [[ir.Linear(head.query.weight) for head in group] for group in groups],
        "k": [[head.key for head in group] for group in groups],
        "v": [[head.value for head in group] for group in groups],
    }
    ghosts = ghost_rows(len(keys), attention.ghosts, target)
    rows = normalised.take(graph, keys, f"{name}.keys").with_zeros(graph, ghosts, f"{name}.ghosts")
    outputs = _fused(graph, parts, "qkv", rows, name)
    operands = []
    for i, (group, q, k, v) in enumerate(zip(groups, outputs["q"], outputs["k"], outputs["v"], strict=True)):
        query = _heads(graph, q, len(group), normalised.batch, False, f"{name}.q.{i}")
        query = graph.take(query, asking, 2, f"{name}.q.{i}.asking")
        biases = [np.zeros(len(h.query.weight)) if h.query.bias is None else h.query.bias for h in group]
        if any(head.query.bias is not None for head in group):
            bias = graph.parameter(f"{name}.q.{i}.bias", np.stack(biases)[None, :, None, :])
            query = graph.add(query, bias, f"{name}.q.{i}.biased")
        key = _heads(graph, k, len(group), normalised.batch, True, f"{name}.k.{i}")
        value = _heads(graph, v, len(group), normalised.batch, False, f"{name}.v.{i}")
        operands.append(_Operands(query, key, value, ghosts))
    return operands


def _fused(
    graph: GraphBuilder, parts: dict[str, list[list[ir.Linear]]], label: str, rows: Stream, name: str
) -> dict[str, list[Value]]:
    """One Gemm for all `parts`, cut into one matrix a kind and group."""
    linears = [linear for lists in parts.values() for group in lists for linear in group]
    joined = _gemm(graph, linears, rows, f"{name}.{label}")
    names = [f"{name}.{kind}.{i}.flat" for kind, lists in parts.items() for i in range(len(lists))]
    widths = [sum(linear.weight.shape[0] for linear in group) for lists in parts.values() for group in lists]
    pieces = iter(graph.split(joined, widths, 1, names))
    return {kind: list(itertools.islice(pieces, len(lists))) for kind, lists in parts.items()}


def _gemm(graph: GraphBuilder, linears: Sequence[ir.Linear], rows: Stream, name: str) -> Value:
    weight = graph.parameter(f"{name}.weight", np.concatenate([linear.weight for linear in linears]))
    bias = None
    if any(linear.bias is not None for linear in linears):
        bias = graph.parameter(f"{name}.bias", np.concatenate([bias_of(linear) for linear in linears]))
    return graph.gemm(rows.matrix, weight, bias, name)


def bias_of(linear: ir.Linear) -> ir.FloatArray:
    """The bias of `linear`, zeros where it has none."""
    return np.zeros(len(linear.weight), linear.weight.dtype) if linear.bias is None else linear.bias


def _queries(
    graph: GraphBuilder,
    groups: list[list[ir.Linear]],
    normalised: Stream,
    live: ir.IndexArray,
    seen: ir.BoolArray,
    name: str,
) -> list[Value]:
    """Queries [B * live, width] of every group; a row that attention does not see has the query bias for its query."""
    linears = [linear for group in groups for linear in group]
    widths = [sum(linear.weight.shape[0] for linear in group) for group in groups]
    names = [f"{name}.q.{i}.flat" for i in range(len(groups))]
    parts: list[tuple[Stream, ir.IndexArray]] = []
    positions = np.arange(len(live))
    if seen.any():
        rows = normalised.take(graph, live[seen], f"{name}.queries")
        parts.append((rows.replace(_gemm(graph, linears, rows, f"{name}.q")), positions[seen]))
    if not seen.all():
        blind = int((~seen).sum()) * normalised.batch
        bias = np.concatenate([bias_of(linear) for linear in linears])
        constant = graph.constant(np.tile(bias.astype(np.float32), (blind, 1)), f"{name}.q.blind")
        parts.append((normalised.replace(constant), positions[~seen]))
    whole = parts[0][0] if len(parts) == 1 else Stream.merge(graph, parts, f"{name}.q.merged")
    return graph.split(whole.matrix, widths, 1, names)


def _heads(graph: GraphBuilder, flat: Value, heads: int, batch: int, transposed: bool, name: str) -> Value:
    """[B * N, H * d] as [B, H, N, d], or [B, H, d, N] where `transposed`."""
    rows, width = dims(flat)
    split = graph.reshape(flat, (batch, rows // batch, heads, width // heads), f"{name}.split")
    return graph.transpose(split, (0, 2, 3, 1) if transposed else (0, 2, 1, 3), name)


def _mix(
    graph: GraphBuilder,
    attention: ir.Attention,
    group: tuple[ir.Head, ...],
    operands: _Operands,
    name: str,
    target: Target,
) -> Value:
    """softmax(q k^T) v of one group: [B * Nq, H * dv]."""
    query, key, value = operands.query, operands.key, operands.value
    if any(head.mask is not None for head in group):
        mask = np.stack([np.ones(h.value.weight.shape[0]) if h.mask is None else h.mask for h in group]).astype(
            np.float32
        )
        column = graph.constant(mask[None, :, None, :], "mask")
        query, value = graph.mul(query, column, f"{name}.q.mask"), graph.mul(value, column, f"{name}.v.mask")
        key = graph.mul(key, graph.constant(mask[None, :, :, None], "mask"), f"{name}.k.mask")
    if attention.scale != 1.0:
        query = graph.scale(query, attention.scale, f"{name}.q.scale")
    rows = operands.ghost_rows
    if attention.ghosts and not rows:
        rows = ghost_rows(dims(key)[3], attention.ghosts, target)
        key, value = _with_ghosts(graph, rows, key, value, name)
    bias = _ghost_bias(graph, attention.ghosts, dims(key)[3], rows)
    scores = graph.matmul(query, key, f"{name}.scores")
    if bias is not None:
        scores = graph.add(scores, bias, f"{name}.scores.ghosts")
    mixed = graph.matmul(graph.softmax(scores, f"{name}.softmax"), value, f"{name}.mixed")
    batch, heads, queries, width = dims(mixed)
    merged = graph.transpose(mixed, (0, 2, 1, 3), f"{name}.merged")
    return graph.reshape(merged, (batch * queries, heads * width), f"{name}.flat")


def _with_ghosts(graph: GraphBuilder, rows: int, key: Value, value: Value, name: str) -> tuple[Value, Value]:
    """Keys and values with zero rows appended."""
    batch, heads, width, _ = dims(key)
    key = graph.concat([key, _zeros(graph, (batch, heads, width, rows))], 3, f"{name}.k.ghosts")
    value = graph.concat([value, _zeros(graph, (batch, heads, rows, dims(value)[3]))], 2, f"{name}.v.ghosts")
    return key, value


def _ghost_bias(graph: GraphBuilder, ghosts: int, keys: int, rows: int) -> Value | None:
    """What is added to the scores so that the last `rows` of `keys` keys count for `ghosts`; none where nothing is."""
    if rows == ghosts:
        return None
    bias = np.zeros((1, 1, 1, keys), np.float32)
    bias[..., keys - rows :] = math.log(ghosts / rows)
    return graph.constant(bias, "ghosts")


def ghost_rows(keys: int, ghosts: int, target: Target) -> int:
    """Zero rows to append to `keys` keys that stand for `ghosts` ghosts; none where there are no ghosts."""
    return 0 if ghosts == 0 else -keys % target.key_multiple or target.key_multiple


def _zeros(graph: GraphBuilder, shape: tuple[int, ...]) -> Value:
    return graph.constant(np.zeros(shape, np.float32), "zeros")
