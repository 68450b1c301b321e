"""Emission of what is read from the residual stream: logits, pooled features, rows of the last block or of any other.

Logits and features share their work. The last norm is applied to the rows that somebody reads: once where sets of them
overlap, and apart where they do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from slimc import ir
from slimc.emit.graph import GraphBuilder, Value, dims
from slimc.emit.latent import emit_latent_pool
from slimc.emit.norms import EmittedNorm, emitted_norm
from slimc.emit.stream import Stream
from slimc.emit.tokens import Kept

_HEADS = ("head", "head_dist")


def emit_rows(graph: GraphBuilder, output: ir.Output, rows: Stream, grid: tuple[int, int]) -> Value:
    """The output that consists of `rows`, under its name and in its layout."""
    if output.layout == "NLC":
        return rows.images(graph, output.name)
    images = rows.images(graph, f"{output.name}.images")
    channels = graph.transpose(images, (0, 2, 1), f"{output.name}.channels")
    return graph.reshape(channels, (*dims(channels)[:2], *grid), output.name)


def emit_readout(
    graph: GraphBuilder, model: ir.Model, outputs: Iterable[ir.Output], stream: Stream, kept: Kept | None
) -> dict[str, Value]:
    """`outputs` that are read behind the last block, by name."""
    readout = _Readout(graph, model, tuple(outputs), stream, kept)
    found = {}
    for output in readout.outputs:
        if output.kind == "tokens":
            assert output.rows is not None
            rows = readout.normalised(output.rows, f"{output.name}.norm", f"{output.name}.rows")
            found[output.name] = emit_rows(graph, output, rows, model.grid)
        elif output.kind == "features":
            found[output.name] = readout.mean_features(output.name)
        else:
            found[output.name] = readout.logits(output.name)
    return found


@dataclass(frozen=True)
class _Readout:
    """What is read behind the last block; norms are emitted when they are first needed."""

    graph: GraphBuilder
    model: ir.Model
    outputs: tuple[ir.Output, ...]
    stream: Stream
    kept: Kept | None
    done: dict[tuple[int, ...], Stream] = field(default_factory=dict)
    read: dict[int, Value] = field(default_factory=dict)

    @property
    def classifier(self) -> ir.Classifier:
        return self.model.classifier

    @cached_property
    def norm(self) -> EmittedNorm:
        assert self.classifier.norm is not None
        return emitted_norm(self.graph, self.classifier.norm, "norm")

    @cached_property
    def pooled_norm(self) -> EmittedNorm:
        assert self.classifier.pooled_norm is not None
        return emitted_norm(self.graph, self.classifier.pooled_norm, "fc_norm")

    @cached_property
    def pre_logits(self) -> tuple[Value, Value | None]:
        linear = self.classifier.pre_logits
        assert linear is not None
        weight = self.graph.parameter("pre_logits.fc.weight", linear.weight)
        return weight, None if linear.bias is None else self.graph.parameter("pre_logits.fc.bias", linear.bias)

    @cached_property
    def shared(self) -> list[ir.IndexArray]:
        """Sets of rows that are normalised at once: of all that are read, those that overlap are one."""
        sets: list[set[int]] = []
        for rows in _read_rows(self.model, self.outputs, self.stream.rows):
            own = set(rows.tolist())
            together = own.union(*(other for other in sets if other & own))
            sets = [other for other in sets if not other & together] + [together]
        return [np.array(sorted(rows)) for rows in sets]

    def normalised(self, rows: ir.IndexArray, name: str, taken: str) -> Stream:
        """The given rows after the last norm, called `name`; `taken` are those rows before."""
        if self.classifier.norm is None:
            return self.stream.take(self.graph, rows, taken)
        shared = next(every for every in self.shared if np.isin(rows, every).all())
        whole = self.done.get(tuple(shared))
        if whole is None:
            alone = np.array_equal(shared, rows)
            read = self.stream.take(self.graph, shared, taken if alone else "norm.rows")
            whole = read.replace(self.norm(self.graph, read.matrix, name if alone else f"{name}.shared"))
            self.done[tuple(shared)] = whole
        return whole.take(self.graph, np.searchsorted(shared, rows), f"{taken}.normalised")

    @property
    def names(self) -> tuple[str, ...]:
        """What the features are called that a head reads, head by head."""
        return _HEADS[: len(self.classifier.rows)] if self.classifier.pool is None else ("pool",)

    def features(self, i: int) -> Value:
        """The features [B, F] that the `i`-th head reads."""
        if i not in self.read:
            name = self.names[i]
            features = self._pooled(i)
            if self.classifier.pooled_norm is not None:
                features = self.pooled_norm(self.graph, features, f"{name}.fc_norm")
            if self.classifier.pre_logits is not None:
                label = "pre_logits" if i == 0 else f"{name}.pre_logits"
                hidden = self.graph.gemm(features, *self.pre_logits, f"{label}.fc")
                features = self.graph.op("Tanh", [hidden], label, dims(hidden))
            self.read[i] = features
        return self.read[i]

    def _pooled(self, i: int) -> Value:
        pool = self.classifier.pool
        if pool is None:
            row = np.array([self.classifier.rows[i]])
            return self.normalised(row, f"{self.names[i]}.norm", f"{self.names[i]}.row").matrix
        rows = self.normalised(pool.rows, "pool.norm", "pool.rows")
        if isinstance(pool, ir.LatentPool):
            return emit_latent_pool(self.graph, pool, rows)
        return _pool(self.graph, pool, rows)

    def mean_features(self, name: str) -> Value:
        """The output of the features."""
        parts, graph = [self.features(i) for i in range(len(self.names))], self.graph
        if len(parts) == 1:
            return graph.op("Identity", parts, name, dims(parts[0]))
        return graph.scale(_sum(graph, parts, f"{name}.sum"), 1.0 / len(parts), name)

    def logits(self, name: str) -> Value:
        """The output of the logits."""
        graph, classifier = self.graph, self.classifier
        scaled, auxiliary = classifier.scale != 1.0, classifier.auxiliary
        total: Value | None = None
        for i, (head, label) in enumerate(zip(classifier.heads, _HEADS, strict=False)):
            features = self.features(i)
            weight = graph.parameter(f"{label}.weight", head.weight)
            bias = None if head.bias is None else graph.parameter(f"{label}.bias", head.bias)
            last = i == len(classifier.heads) - 1 and not scaled and auxiliary is None
            part = graph.gemm(features, weight, bias, name if last and i == 0 else label)
            total = part if total is None else graph.add(total, part, name if last else "head.sum")
        assert total is not None
        if scaled:
            total = graph.scale(total, classifier.scale, name if auxiliary is None else "head.scaled")
        if auxiliary is None:
            return total
        return graph.add(total, self._auxiliary(auxiliary), name)

    def _auxiliary(self, head: ir.Linear) -> Value:
        """The largest of every class over the patches that are visible: [B, classes]."""
        graph = self.graph
        patches = self.normalised(_patch_rows(self.model, self.stream.rows), "aux_head.norm", "aux_head.rows")
        logits = patches.replace(graph.linear(patches.matrix, head, "aux_head")).images(graph, "aux_head.images")
        if self.kept is not None:
            batch, rows = dims(self.kept.rows)
            column = graph.reshape(self.kept.bias, (batch, rows, 1), "aux_head.hiding")
            bias = graph.take(column, np.arange(rows - patches.rows, rows), 1, "aux_head.hiding.patches")
            logits = graph.add(logits, bias, "aux_head.visible")
        return graph.reduce("ReduceMax", logits, 1, "aux_head.largest")


def _pool(graph: GraphBuilder, pool: ir.Pool, rows: Stream) -> Value:
    """Features [B, C] or [B, 2 C] of the rows that `pool` reads."""
    images = rows.images(graph, "pool.images")
    batch, count, dim = dims(images)
    if pool.kind == "token+avg":
        token = graph.reshape(graph.take(images, np.array([0]), 1, "pool.token"), (batch, dim), "pool.token.flat")
        others = graph.take(images, np.arange(1, count), 1, "pool.others")
        return graph.concat([token, graph.reduce("ReduceMean", others, 1, "pool.mean")], 1, "pool")
    parts = []
    if pool.kind in ("avg", "avgmax"):
        parts.append(graph.reduce("ReduceMean", images, 1, "pool.mean"))
    if pool.kind in ("max", "avgmax"):
        parts.append(graph.reduce("ReduceMax", images, 1, "pool.largest"))
    return parts[0] if len(parts) == 1 else graph.scale(graph.add(parts[0], parts[1], "pool.sum"), 0.5, "pool")


def _sum(graph: GraphBuilder, parts: list[Value], name: str) -> Value:
    total = parts[0]
    for i, part in enumerate(parts[1:]):
        total = graph.add(total, part, f"{name}.{i}")
    return total


def _read_rows(model: ir.Model, outputs: Iterable[ir.Output], rows: int) -> Iterable[ir.IndexArray]:
    """The sets of rows, of as many, that the classifier and `outputs` read behind the last norm."""
    classifier, kinds = model.classifier, {output.kind for output in outputs}
    yield from (output.rows for output in outputs if output.kind == "tokens" and output.rows is not None)
    if kinds & {"logits", "features"}:
        yield from (np.array([row]) for row in classifier.rows)
        if classifier.pool is not None:
            yield classifier.pool.rows
    if "logits" in kinds and classifier.auxiliary is not None:
        yield _patch_rows(model, rows)


def _patch_rows(model: ir.Model, rows: int) -> ir.IndexArray:
    return np.arange(model.prefix, rows)
