"""Queries and keys between their product and their heads: masked, normalised and turned, those of all heads at once.

Turning them takes both halves of every head. Where nothing stands between, the product yields the first halves of all
heads, then the second ones: so a turn is six elementwise operators over everything, whatever the widths of the heads, and
cutting the product apart costs nothing more. Where the Attention operator exists so does RotaryEmbedding, which is
faster still. (A product that yields the turned columns besides, x cos + (x R) sin, was measured: ten times as slow.)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from slimc import ir
from slimc.emit.graph import GraphBuilder, Value, dims
from slimc.emit.norms import EmittedNorm, emitted_norm
from slimc.errors import InternalError
from slimc.targets.plan import AttentionPlan


@dataclass(frozen=True)
class Preparation:
    """What is done to the queries and keys of an attention, called "q" and "k", or "qk" for both side by side."""

    graph: GraphBuilder
    plan: AttentionPlan
    name: str

    @cached_property
    def heads(self) -> tuple[ir.Head, ...]:
        """All heads, group by group."""
        return tuple(itertools.chain(*self.plan.groups))

    @property
    def turned(self) -> bool:
        """Whether queries and keys are turned."""
        return any(head.rotation is not None for head in self.heads)

    @property
    def normalised(self) -> bool:
        """Whether queries or keys are normalised: by different parameters, so that they are cut apart before."""
        return self.plan.node.query_norm is not None or self.plan.node.key_norm is not None

    @property
    def halved(self) -> bool:
        """Whether the product yields halves of heads."""
        return self.turned and not self.normalised and not self.plan.rotary_operator

    def columns(self, kinds: str) -> list[list[ir.Linear]]:
        """The columns that a product yields for `kinds`, by the parts that `by_group` takes: one part, or two halves."""
        linears = [head.query if kind == "q" else head.key for kind in kinds for head in self.heads]
        return [[_half(linear, i) for linear in linears] for i in range(2)] if self.halved else [linears]

    def by_group(self, parts: Sequence[Value], kinds: str, rows: ir.IndexArray) -> dict[str, list[Value]]:
        """Queries or keys of every group [.., N, width], from what `columns` yielded for `rows` of the stream."""
        parts = self._masked(parts, kinds)
        norm = self.plan.node.query_norm if kinds == "q" else self.plan.node.key_norm
        if norm is not None:
            module = f"{self.name}.{kinds}_norm"
            parts = [self._normalise(parts[0], emitted_norm(self.graph, norm, module), module)]
        if self.turned and not self.plan.rotary_operator:
            halves = parts if len(parts) == 2 else self._halves(parts[0], kinds)
            pieces = self._joined(self._turn(halves, kinds, rows), kinds)
        else:
            pieces = self._cut(parts[0], self._widths(kinds), self._names(kinds, "prepared"))
        if self.turned and self.plan.rotary_operator:
            each = zip(pieces, self.plan.groups * len(kinds), self._names(kinds, "turned"), strict=True)
            pieces = [self._rotary(piece, group, rows, name) for piece, group, name in each]
        count = len(self.plan.groups)
        return {kind: pieces[i * count :][:count] for i, kind in enumerate(kinds)}

    def _names(self, kinds: str, part: str) -> list[str]:
        return [f"{self.name}.{kind}.{i}.{part}" for kind in kinds for i in range(len(self.plan.groups))]

    def _widths(self, kinds: str) -> list[int]:
        """Columns of every group."""
        return [sum(len(head.query.weight) for head in group) for _ in kinds for group in self.plan.groups]

    def _cut(self, x: Value, widths: Sequence[int], names: Sequence[str]) -> list[Value]:
        return self.graph.split(x, widths, len(dims(x)) - 1, names)

    def _masked(self, parts: Sequence[Value], kinds: str) -> Sequence[Value]:
        """The parts times the masks of queries and keys."""
        if all(head.mask is None for head in self.heads):
            return parts
        masks = [np.ones(len(h.query.weight)) if h.mask is None else h.mask for _ in kinds for h in self.heads]
        if self.halved:
            factors = [np.concatenate([np.split(mask, 2)[i] for mask in masks]) for i in range(2)]
        else:
            factors = [np.concatenate(masks)]
        graph = self.graph
        return [
            graph.mul(part, graph.constant(factor.astype(np.float32), "mask"), f"{self.name}.{kinds}.mask.{i}")
            for i, (part, factor) in enumerate(zip(parts, factors, strict=True))
        ]

    def _normalise(self, x: Value, norm: EmittedNorm, name: str) -> Value:
        """`x` [.., N, H d] normalised head by head."""
        heads = self._by_head(x, len(self.heads), f"{name}.heads")
        return self.graph.reshape(norm(self.graph, heads, name), dims(x), f"{name}.flat")

    def _by_head(self, x: Value, heads: int, name: str) -> Value:
        """`x` [.., N, H d] as [.., N, H, d]."""
        return self.graph.reshape(x, (*dims(x)[:-1], heads, dims(x)[-1] // heads), name)

    def _halves(self, x: Value, kinds: str) -> Sequence[Value]:
        """The halves of heads of one width, from `x` [.., N, H d]: [.., N, H d / 2]."""
        heads = self._by_head(x, len(self.heads), f"{self.name}.{kinds}.heads")
        width = dims(heads)[-1] // 2
        names = [f"{self.name}.{kinds}.half.{i}" for i in range(2)]
        halves = self.graph.split(heads, [width, width], len(dims(heads)) - 1, [f"{name}.heads" for name in names])
        shape = (*dims(x)[:-1], dims(x)[-1] // 2)
        return [self.graph.reshape(half, shape, name) for half, name in zip(halves, names, strict=True)]

    def _turn(self, halves: Sequence[Value], kinds: str, rows: ir.IndexArray) -> list[Value]:
        """The halves [.., N, kinds * sum of d / 2], turned. Queries and keys share their tables."""
        graph, name, shape = self.graph, f"{self.name}.{kinds}", dims(halves[0])
        cos, sin = (np.concatenate(tables, axis=1) for tables in zip(*self._tables(self.heads, rows), strict=True))
        if len(kinds) > 1:
            apart = (*shape[:-1], len(kinds), shape[-1] // len(kinds))
            halves = [graph.reshape(half, apart, f"{name}.apart.{i}") for i, half in enumerate(halves)]
            cos, sin = cos[:, None], sin[:, None]
        cosines, sines = graph.constant(cos, "cos"), graph.constant(sin, "sin")
        first, second = halves
        along = [graph.mul(half, cosines, f"{name}.cos.{i}") for i, half in enumerate(halves)]
        across = [graph.mul(half, sines, f"{name}.sin.{i}") for i, half in enumerate((second, first))]
        turned = [
            graph.op("Sub", [along[0], across[0]], f"{name}.turned.0", dims(first)),
            graph.add(along[1], across[1], f"{name}.turned.1"),
        ]
        return [graph.reshape(half, shape, f"{name}.turned.{i}.flat") for i, half in enumerate(turned)]

    def _joined(self, halves: Sequence[Value], kinds: str) -> list[Value]:
        """Queries or keys of every group, whole heads again."""
        widths = [width // 2 for width in self._widths(kinds)]
        cut = [self._cut(half, widths, self._names(kinds, f"half.{i}.cut")) for i, half in enumerate(halves)]
        pieces = []
        for *pair, group, name in zip(*cut, self.plan.groups * len(kinds), self._names(kinds, "prepared"), strict=True):
            lead, width = dims(pair[0])[:-1], dims(pair[0])[-1]
            shape = (*lead, len(group), 1, width // len(group))
            heads = [self.graph.reshape(half, shape, f"{name}.half.{i}") for i, half in enumerate(pair)]
            joined = self.graph.concat(heads, len(lead) + 1, f"{name}.joined")
            pieces.append(self.graph.reshape(joined, (*lead, 2 * width), name))
        return pieces

    def _rotary(self, x: Value, group: tuple[ir.Head, ...], rows: ir.IndexArray, name: str) -> Value:
        """One group's queries or keys [.., N, H d], turned by the operator: rows where it has images, heads for rows."""
        graph, tables, heads = self.graph, self._tables(group, rows), len(group)
        batch = dims(x)[0] if len(dims(x)) == 3 else 1
        if all(np.array_equal(a, b) for table in tables[1:] for a, b in zip(table, tables[0], strict=True)):
            shape, several = (batch, len(rows), dims(x)[-1]), heads
            parts = [np.tile(part[None], (batch, 1, 1)) for part in tables[0]]
        else:
            shape, several = (batch * len(rows), heads, dims(x)[-1] // heads), 1
            parts = [np.tile(np.stack(part, axis=1), (batch, 1, 1)) for part in zip(*tables, strict=True)]
        images = graph.reshape(x, shape, f"{name}.images")
        inputs = [images, graph.constant(parts[0], "cos"), graph.constant(parts[1], "sin")]
        turned = graph.op("RotaryEmbedding", inputs, name, shape, {"num_heads": several})
        return graph.reshape(turned, dims(x), f"{name}.flat")

    def _tables(self, heads: Sequence[ir.Head], rows: ir.IndexArray) -> list[tuple[ir.FloatArray, ir.FloatArray]]:
        """Cosines and sines [N, d / 2] of every head for `rows` of the stream; rows behind its end are not turned."""
        found = []
        for head in heads:
            if head.rotation is None:
                raise InternalError(f"{self.name}: some heads are turned and others are not")
            entering, width = head.rotation.cos.shape
            more = max(0, int(rows.max(initial=0)) + 1 - entering)
            cos = np.concatenate([head.rotation.cos, np.ones((more, width))])
            sin = np.concatenate([head.rotation.sin, np.zeros((more, width))])
            found.append((cos[rows].astype(np.float32), sin[rows].astype(np.float32)))
        return found


def _half(linear: ir.Linear, i: int) -> ir.Linear:
    """The first or second half of the outputs of `linear`."""
    bias = None if linear.bias is None else np.split(linear.bias, 2)[i]
    return ir.Linear(np.split(linear.weight, 2)[i], bias)
