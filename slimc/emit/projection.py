"""Queries, keys and values: which Gemms make them, and how they are cut into heads.

One product of all rows with the stacked weights of q, k and v is the fastest where every row is a query and a key. Where
fewer rows are queries, it computes some that nobody reads: a target says how many multiply-accumulates that may cost, and
beyond them queries have a product of their own. The keys and values of ghosts come out of the same product, as zero rows
among its inputs, where that costs no more than a target allows. The plan (`slimc.targets.plan`) says which it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from slimc import ir
from slimc.emit.graph import GraphBuilder, Value, dims
from slimc.emit.rotation import Preparation
from slimc.emit.stream import Stream
from slimc.targets.plan import AttentionPlan

_Linears = dict[str, list[list[ir.Linear]]]
"""The linear layers of every group, by what they yield: q, k or v."""


@dataclass(frozen=True)
class Operands:
    """Inputs of one group's attention. How its heads lie there depends on how the group is computed (`AttentionPlan`):

    a head alone, in products           query and value [B, N, d], key [B, d, N]; it needs no transposing
    several heads, in products          query and value [B, H, N, d], key [B, H, d, N]
    heads of the Attention operator     [B, N, H * d]

    Where no group goes to the operator, a head alone has no batch axis at batch size 1: [N, d].
    """

    query: Value
    key: Value
    value: Value


def ghost_bias(graph: GraphBuilder, scores: tuple[int, ...], ghosts: int, rows: int, *, full: bool = False) -> Value:
    """What is added to `scores` [B, H, queries, keys], or without leading axes, so that their last `rows` columns count for
    `ghosts`.

    A single row would do, but OpenVINO reads that wrong in bfloat16, which it takes by itself on CPUs that have it (seen
    in 2026.4). So there is one row for each head, or for each query where there is one head, or for each image. With `full`
    there is one for each query wherever there are several: the Attention operator of ONNX Runtime takes no other.
    """
    *lead, queries, keys = scores
    alone = [*(lead if queries == 1 else [1] * len(lead)), queries, keys]
    shape = [1, lead[1], 1, keys] if len(lead) == 2 and not (full and queries > 1) else alone
    bias = np.zeros(shape, np.float32)
    bias[..., -rows:] = math.log(ghosts / rows)
    return graph.constant(bias, "ghosts")


def project(graph: GraphBuilder, plan: AttentionPlan, normalised: Stream, name: str) -> list[Operands]:
    """Operands of every group, from the normalised stream."""
    visible = normalised.take(graph, plan.key_rows, f"{name}.keys")
    keys = visible.with_zeros(graph, plan.projected_ghosts, f"{name}.ghosts")
    if plan.prepared:
        return _project_prepared(graph, plan, normalised, keys, name)
    if plan.projection == "qkv":
        return _project_qkv(graph, plan, keys, name)
    linears = _linears(plan)
    outputs = _product(graph, {kind: linears[kind] for kind in "kv"}, "kv", keys, plan, name)
    outputs["q"] = _queries(graph, linears["q"], plan, normalised, name)
    return _split_heads(graph, outputs, plan, name)


def _project_prepared(
    graph: GraphBuilder, plan: AttentionPlan, normalised: Stream, keys: Stream, name: str
) -> list[Operands]:
    """Operands whose queries and keys are normalised or turned before they are cut into heads."""
    preparation = Preparation(graph, plan, name)
    values = [[head.value for head in group] for group in plan.groups]
    entering = normalised.rows
    rows = np.concatenate([plan.key_rows, np.arange(entering, entering + plan.projected_ghosts)])
    everything = np.array_equal(plan.query_rows, rows)
    if plan.projection == "qkv":
        together = everything and not preparation.normalised
        asked = {kinds: preparation.columns(kinds) for kinds in (("qk",) if together else ("q", "k"))}
        parts = _product(graph, {**asked, "v": values}, "qkv", keys, plan, name)
        if not together:
            parts["q"] = _asking(graph, plan, parts["q"], f"{name}.q")
    else:
        parts = _product(graph, {"k": preparation.columns("k"), "v": values}, "kv", keys, plan, name)
        parts["q"] = _queries(graph, preparation.columns("q"), plan, normalised, name)
    outputs = {"v": parts.pop("v")}
    for kinds, part in parts.items():
        outputs |= preparation.by_group(part, kinds, plan.query_rows if kinds == "q" else rows)
    return _split_heads(graph, outputs, plan, name)


def _asking(
    graph: GraphBuilder, plan: AttentionPlan, queries: Sequence[Value], name: str, first: int = 0
) -> list[Value]:
    """Of queries [.., keys, ..] that a product made of all keys, those that are read."""
    places = {int(row): i for i, row in enumerate(plan.key_rows)}
    read = np.array([places.get(int(row), int(row)) for row in plan.query_rows])  # a ghost's number is its place
    return [graph.take(x, read, len(dims(x)) - 2, f"{name}.{i}.asking") for i, x in enumerate(queries, first)]


def _linears(plan: AttentionPlan) -> _Linears:
    return {
        "q": [[head.query for head in group] for group in plan.groups],
        "k": [[head.key for head in group] for group in plan.groups],
        "v": [[head.value for head in group] for group in plan.groups],
    }


def _project_qkv(graph: GraphBuilder, plan: AttentionPlan, keys: Stream, name: str) -> list[Operands]:
    """Everything from one product over all keys; queries are selected once they are cut into heads."""
    linears = _linears(plan)
    if not plan.query_bias_in_product:
        linears["q"] = [[ir.Linear(linear.weight) for linear in group] for group in linears["q"]]
    if plan.stacked_groups:
        projected = _project_stacked(graph, linears, keys, name)
    else:
        projected = _split_heads(graph, _product(graph, linears, "qkv", keys, plan, name), plan, name)
    operands = []
    for i, (group, operand) in enumerate(zip(plan.groups, projected, strict=True)):
        (query,) = _asking(graph, plan, [operand.query], f"{name}.q", i)
        if not plan.query_bias_in_product and any(head.query.bias is not None for head in group):
            bias = np.stack([bias_of(head.query) for head in group])[:, None, :]
            bias = bias if len(group) > 1 else bias[0]
            query = graph.add(query, graph.parameter(f"{name}.q.{i}.bias", bias), f"{name}.q.{i}.biased")
        operands.append(replace(operand, query=query))
    return operands


def _split_heads(
    graph: GraphBuilder, outputs: dict[str, list[Value]], plan: AttentionPlan, name: str
) -> list[Operands]:
    """Query, key and value by heads, from one matrix a kind and group."""
    return [
        Operands(
            _heads(graph, q, len(group), plan, False, f"{name}.q.{i}"),
            _heads(graph, k, len(group), plan, True, f"{name}.k.{i}"),
            _heads(graph, v, len(group), plan, False, f"{name}.v.{i}"),
        )
        for i, (group, q, k, v) in enumerate(zip(plan.groups, outputs["q"], outputs["k"], outputs["v"], strict=True))
    ]


def _project_stacked(graph: GraphBuilder, linears: _Linears, rows: Stream, name: str) -> list[Operands]:
    """Query, key and value by heads, from a product for each group, transposed together: [3, B, H, N, d]."""
    operands = []
    for i, (q, k, v) in enumerate(zip(linears["q"], linears["k"], linears["v"], strict=True)):
        label, heads = f"{name}.group{i}.qkv", len(q)
        joined = graph.linear(rows.matrix, stacked([*q, *k, *v]), label)
        shape = (rows.batch, rows.rows, 3, heads, dims(joined)[1] // (3 * heads))
        split = graph.reshape(joined, shape, f"{label}.split")
        turned = graph.transpose(split, (2, 0, 3, 1, 4), f"{label}.stacked")
        names = [f"{name}.{kind}.{i}" for kind in "qkv"]
        pieces = graph.split(turned, (1, 1, 1), 0, [f"{piece}.stacked" for piece in names])
        query, key, value = (
            graph.reshape(piece, dims(turned)[1:], piece_name) for piece, piece_name in zip(pieces, names, strict=True)
        )
        operands.append(Operands(query, graph.transpose(key, (0, 1, 3, 2), f"{names[1]}.transposed"), value))
    return operands


def _product(
    graph: GraphBuilder, linears: _Linears, label: str, rows: Stream, plan: AttentionPlan, name: str
) -> dict[str, list[Value]]:
    """One Gemm for all `linears`, cut into one matrix a kind and group."""
    groups = [group for groups in linears.values() for group in groups]
    joined = rows.replace(graph.linear(rows.matrix, stacked(list(itertools.chain(*groups))), f"{name}.{label}"))
    names = [f"{name}.{kind}.{i}.flat" for kind, groups in linears.items() for i in range(len(groups))]
    pieces = iter(_columns(graph, joined, groups, names, plan))
    return {kind: list(itertools.islice(pieces, len(groups))) for kind, groups in linears.items()}


def _columns(
    graph: GraphBuilder, rows: Stream, groups: list[list[ir.Linear]], names: Sequence[str], plan: AttentionPlan
) -> list[Value]:
    """The columns of `rows` that every group yields: [B, N, width]; [N, width] at batch 1 and without the operator."""
    widths = [sum(len(linear.weight) for linear in group) for group in groups]
    if rows.batch == 1 and not any(plan.uses_operator(len(group)) for group in plan.groups):
        return graph.split(rows.matrix, widths, 1, names)
    return graph.split(rows.images(graph, f"{names[0]}.images"), widths, 2, names)


def stacked(linears: Sequence[ir.Linear]) -> ir.Linear:
    """The outputs of `linears`, side by side, as those of one; it has a bias where one of them has."""
    biased = any(linear.bias is not None for linear in linears)
    bias = np.concatenate([bias_of(linear) for linear in linears]) if biased else None
    return ir.Linear(np.concatenate([linear.weight for linear in linears]), bias)


def bias_of(linear: ir.Linear) -> ir.FloatArray:
    """The bias of `linear`, zeros where it has none."""
    return np.zeros(len(linear.weight), linear.weight.dtype) if linear.bias is None else linear.bias


def _queries(
    graph: GraphBuilder, groups: list[list[ir.Linear]], plan: AttentionPlan, normalised: Stream, name: str
) -> list[Value]:
    """Queries of every group; a row that attention does not see has the query bias for its query."""
    linears = [linear for group in groups for linear in group]
    visible = plan.visible_queries
    parts: list[tuple[Stream, ir.IndexArray]] = []
    if visible.any():
        rows = normalised.take(graph, plan.query_rows[visible], f"{name}.queries")
        projected = rows.replace(graph.linear(rows.matrix, stacked(linears), f"{name}.q"))
        parts.append((projected, np.flatnonzero(visible)))
    if not visible.all():
        invisible = np.flatnonzero(~visible)
        bias = np.concatenate([bias_of(linear) for linear in linears]).astype(np.float32)
        constant = graph.constant(np.tile(bias, (len(invisible) * normalised.batch, 1)), f"{name}.q.blind")
        parts.append((normalised.replace(constant), invisible))
    whole = parts[0][0] if len(parts) == 1 else Stream.merge(graph, parts, f"{name}.q.merged")
    return _columns(graph, whole, groups, [f"{name}.q.{i}.flat" for i in range(len(groups))], plan)


def _heads(graph: GraphBuilder, columns: Value, heads: int, plan: AttentionPlan, transposed: bool, name: str) -> Value:
    """The columns of a group of so many `heads` as its attention takes them."""
    if plan.uses_operator(heads):
        return columns
    if heads == 1:
        axes = [*range(len(dims(columns)) - 2), len(dims(columns)) - 1, len(dims(columns)) - 2]
        return graph.transpose(columns, axes, name) if transposed else columns
    *batch, rows, width = dims(columns)
    split = graph.reshape(columns, (math.prod(batch), rows, heads, width // heads), f"{name}.split")
    return graph.transpose(split, (0, 2, 3, 1) if transposed else (0, 2, 1, 3), name)
