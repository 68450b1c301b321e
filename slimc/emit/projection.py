"""Queries, keys and values: which Gemms make them, and how they are cut into heads.

One product of all rows with the stacked weights of q, k and v is the fastest where every row asks and is asked. Where fewer
rows ask, it computes queries that nobody reads: a target says how many multiply-accumulates that may cost, and beyond
them queries have a product of their own. The keys and values of ghosts come out of the same product, as zero rows among
its inputs, where that costs no more than a target allows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slimc import ir
from slimc.emit.graph import GraphBuilder, Value, dims
from slimc.emit.stream import Stream
from slimc.targets.plan import ghost_rows, head_groups, projects_ghosts, projects_once
from slimc.targets.target import Target

_Parts = dict[str, list[list[ir.Linear]]]
"""The linear layers of every group, by what they yield: q, k or v."""


@dataclass(frozen=True)
class Layout:
    """How the heads of an attention lie between its projections: `sizes` are the heads of its groups.

    One head        [B, N, d]; it needs no transposing
    several heads   [B, H, N, d], or with `operator` [B, N, H d]: as the Attention operator takes them

    With `parts` the queries of one head are cut into so many, which the operator takes for heads. Where no group goes to
    the operator, one image has no batch axis: [N, d].
    """

    batch: int
    sizes: tuple[int, ...]
    operator: bool
    parts: int = 1

    def uses_operator(self, heads: int) -> bool:
        """Whether a group of so many heads goes to the Attention operator."""
        return self.operator and (heads > 1 or self.parts > 1)

    @property
    def flat(self) -> bool:
        """Whether rows are one axis from projection to projection."""
        return self.batch == 1 and not any(self.uses_operator(heads) for heads in self.sizes)


@dataclass(frozen=True)
class Operands:
    """Inputs of one group's attention, laid out as `Layout` says; the key is transposed where the operator is not used.

    The last `ghost_rows` of the keys stand for ghosts already.
    """

    query: Value
    key: Value
    value: Value
    ghost_rows: int = 0


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of the normalised stream, by role: `keys` are asked, `asking` ask; `seen` marks those of them that are keys."""

    normalised: Stream
    keys: ir.IndexArray
    asking: ir.IndexArray

    @property
    def seen(self) -> ir.BoolArray:
        return np.isin(self.asking, self.keys)


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


def project(
    graph: GraphBuilder,
    attention: ir.Attention,
    normalised: Stream,
    live: ir.IndexArray,
    asking: ir.IndexArray,
    name: str,
    target: Target,
    layout: Layout,
) -> list[Operands]:
    """Operands of every group, from the normalised stream of which the `asking` rows ask; see `slimc.targets.plan`."""
    keys = ir.key_rows(attention, normalised.rows)
    once = projects_once(attention, normalised.rows, live, target)
    together = once or projects_ghosts(attention, len(keys), target)
    ghosts = ghost_rows(len(keys), attention.ghosts, target) if together else 0
    asked = normalised.take(graph, keys, f"{name}.keys").with_zeros(graph, ghosts, f"{name}.ghosts")
    rows = _Rows(normalised, keys, asking)
    if once:
        cut = _project_once(graph, attention, rows, asked, name, target, layout)
    else:
        cut = _project_apart(graph, attention, rows, asked, name, layout)
    return [Operands(query, key, value, ghosts) for query, key, value in cut]


def _parts(attention: ir.Attention) -> _Parts:
    groups = head_groups(attention)
    return {
        "q": [[head.query for head in group] for group in groups],
        "k": [[head.key for head in group] for group in groups],
        "v": [[head.value for head in group] for group in groups],
    }


def _project_apart(
    graph: GraphBuilder, attention: ir.Attention, rows: _Rows, asked: Stream, name: str, layout: Layout
) -> list[tuple[Value, Value, Value]]:
    """Keys and values from one product; queries from the same where all biases are alike, else from their own."""
    parts = _parts(attention)
    biases = {linear.bias is not None for lists in parts.values() for group in lists for linear in group}
    if np.array_equal(rows.asking, rows.keys) and asked.rows == len(rows.keys) and len(biases) == 1:
        outputs = _fused(graph, parts, "qkv", asked, name, layout)
    else:
        outputs = _fused(graph, {kind: parts[kind] for kind in "kv"}, "kv", asked, name, layout)
        outputs["q"] = _queries(graph, parts["q"], rows, name, layout)
    return _cut(graph, outputs, name, layout)


def _project_once(
    graph: GraphBuilder,
    attention: ir.Attention,
    rows: _Rows,
    asked: Stream,
    name: str,
    target: Target,
    layout: Layout,
) -> list[tuple[Value, Value, Value]]:
    """Everything from one product over all keys; queries are selected once they are cut into heads."""
    asking = rows.asking
    if attention.rows is not None:  # else a row's number is its place among the keys, a ghost's too
        place = {int(row): i for i, row in enumerate(rows.keys)}
        asking = np.array([place[int(row)] for row in asking])
    parts = _parts(attention)
    if not target.bias_in_product:
        parts["q"] = [[ir.Linear(linear.weight) for linear in group] for group in parts["q"]]
    if target.stacked_groups and len(parts["q"]) > 1:
        cut = _cut_stacked(graph, parts, asked, name)
    else:
        cut = _cut(graph, _fused(graph, parts, "qkv", asked, name, layout), name, layout)
    operands = []
    for i, (group, (query, key, value)) in enumerate(zip(head_groups(attention), cut, strict=True)):
        query = graph.take(query, asking, len(dims(query)) - 2, f"{name}.q.{i}.asking")  # noqa: PLW2901
        if not target.bias_in_product and any(head.query.bias is not None for head in group):
            bias = np.stack([bias_of(head.query) for head in group])[:, None, :]
            bias = bias if len(group) > 1 else bias[0]
            query = graph.add(query, graph.parameter(f"{name}.q.{i}.bias", bias), f"{name}.q.{i}.biased")  # noqa: PLW2901
        operands.append((query, key, value))
    return operands


def _cut(
    graph: GraphBuilder, outputs: dict[str, list[Value]], name: str, layout: Layout
) -> list[tuple[Value, Value, Value]]:
    """Query, key and value by heads, from one matrix a kind and group."""
    return [
        (
            _heads(graph, q, heads, layout, False, f"{name}.q.{i}"),
            _heads(graph, k, heads, layout, True, f"{name}.k.{i}"),
            _heads(graph, v, heads, layout, False, f"{name}.v.{i}"),
        )
        for i, (heads, q, k, v) in enumerate(zip(layout.sizes, outputs["q"], outputs["k"], outputs["v"], strict=True))
    ]


def _cut_stacked(graph: GraphBuilder, parts: _Parts, rows: Stream, name: str) -> list[tuple[Value, Value, Value]]:
    """As `_cut`, from a product for each group whose q, k and v are transposed together: [3, B, H, N, d]."""
    cut = []
    for i, (q, k, v) in enumerate(zip(parts["q"], parts["k"], parts["v"], strict=True)):
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
        cut.append((query, graph.transpose(key, (0, 1, 3, 2), f"{names[1]}.transposed"), value))
    return cut


def _fused(
    graph: GraphBuilder, parts: _Parts, label: str, rows: Stream, name: str, layout: Layout
) -> dict[str, list[Value]]:
    """One Gemm for all `parts`, cut into one matrix a kind and group."""
    linears = [linear for lists in parts.values() for group in lists for linear in group]
    joined = rows.replace(graph.linear(rows.matrix, stacked(linears), f"{name}.{label}"))
    names = [f"{name}.{kind}.{i}.flat" for kind, lists in parts.items() for i in range(len(lists))]
    widths = [sum(linear.weight.shape[0] for linear in group) for lists in parts.values() for group in lists]
    pieces = iter(_columns(graph, joined, widths, names, layout))
    return {kind: list(itertools.islice(pieces, len(lists))) for kind, lists in parts.items()}


def _columns(
    graph: GraphBuilder, rows: Stream, widths: Sequence[int], names: Sequence[str], layout: Layout
) -> list[Value]:
    """Runs of the columns of `rows`: [N, width], or [B, N, width] where the layout has images."""
    if layout.flat:
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


def _queries(graph: GraphBuilder, groups: list[list[ir.Linear]], rows: _Rows, name: str, layout: Layout) -> list[Value]:
    """Queries of the asking rows for every group; a row that attention does not see has the query bias for its query."""
    linears = [linear for group in groups for linear in group]
    seen, normalised = rows.seen, rows.normalised
    parts: list[tuple[Stream, ir.IndexArray]] = []
    if seen.any():
        asking = normalised.take(graph, rows.asking[seen], f"{name}.queries")
        parts.append((asking.replace(graph.linear(asking.matrix, stacked(linears), f"{name}.q")), np.flatnonzero(seen)))
    if not seen.all():
        blind = np.flatnonzero(~seen)
        bias = np.concatenate([bias_of(linear) for linear in linears]).astype(np.float32)
        constant = graph.constant(np.tile(bias, (len(blind) * normalised.batch, 1)), f"{name}.q.blind")
        parts.append((normalised.replace(constant), blind))
    whole = parts[0][0] if len(parts) == 1 else Stream.merge(graph, parts, f"{name}.q.merged")
    widths = [sum(linear.weight.shape[0] for linear in group) for group in groups]
    return _columns(graph, whole, widths, [f"{name}.q.{i}.flat" for i in range(len(groups))], layout)


def _heads(graph: GraphBuilder, columns: Value, heads: int, layout: Layout, transposed: bool, name: str) -> Value:
    """The columns of a group as its attention takes them."""
    if layout.uses_operator(heads):
        return columns
    if heads == 1:
        axes = [*range(len(dims(columns)) - 2), len(dims(columns)) - 1, len(dims(columns)) - 2]
        return graph.transpose(columns, axes, name) if transposed else columns
    rows, width = math.prod(dims(columns)[:-1]), dims(columns)[-1]
    split = graph.reshape(columns, (layout.batch, rows // layout.batch, heads, width // heads), f"{name}.split")
    return graph.transpose(split, (0, 2, 3, 1) if transposed else (0, 2, 1, 3), name)
