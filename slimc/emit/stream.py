"""The residual stream inside a graph under construction: a matrix that knows how many rows each image has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slimc.emit.graph import GraphBuilder, Value, dims
from slimc.ir import FloatArray, IndexArray


@dataclass(frozen=True)
class Stream:
    """`matrix` is [batch * rows, C], image by image."""

    matrix: Value
    batch: int

    @property
    def rows(self) -> int:
        """Rows of one image."""
        return dims(self.matrix)[0] // self.batch

    def replace(self, matrix: Value) -> Stream:
        """A stream of the same batch."""
        return Stream(matrix, self.batch)

    def take(self, graph: GraphBuilder, rows: IndexArray, name: str) -> Stream:
        """The given rows of every image; this stream itself where they are all of them in order."""
        if np.array_equal(rows, np.arange(self.rows)):
            return self
        if self.batch == 1:
            return self.replace(graph.take(self.matrix, rows, 0, name))
        taken = graph.take(self.images(graph, f"{name}.images"), rows, 1, f"{name}.rows")
        return self.replace(graph.reshape(taken, (self.batch * len(rows), dims(self.matrix)[1]), name))

    def images(self, graph: GraphBuilder, name: str) -> Value:
        """The stream as [batch, rows, C]."""
        return graph.reshape(self.matrix, (self.batch, self.rows, dims(self.matrix)[1]), name)

    def with_zeros(self, graph: GraphBuilder, rows: int, name: str) -> Stream:
        """The stream with `rows` rows of zeros behind those of every image; itself where there are none to add."""
        if rows == 0:
            return self
        width = dims(self.matrix)[1]
        zeros = graph.constant(np.zeros((self.batch, rows, width), np.float32), "zeros")
        longer = graph.concat([self.images(graph, f"{name}.images"), zeros], 1, f"{name}.joined")
        return self.replace(graph.reshape(longer, (self.batch * (self.rows + rows), width), name))

    def column(self, graph: GraphBuilder, mask: FloatArray) -> Value:
        """A constant [batch * rows, 1] holding `mask` [rows] for every image."""
        return graph.constant(np.tile(mask.astype(np.float32), self.batch)[:, None], "mask")

    @staticmethod
    def merge(graph: GraphBuilder, parts: Sequence[tuple[Stream, IndexArray]], name: str) -> Stream:
        """One stream from parts that hold the given rows of it; the parts together hold every row once."""
        parts = sorted(parts, key=lambda part: int(part[1][0]))
        batch = parts[0][0].batch
        order = np.concatenate([rows for _, rows in parts])
        pieces = [part.images(graph, f"{name}.images.{i}") for i, (part, _) in enumerate(parts)]
        joined = graph.concat(pieces, 1, f"{name}.joined")
        matrix = graph.reshape(joined, (batch * len(order), dims(joined)[2]), f"{name}.matrix")
        return Stream(matrix, batch).take(graph, np.argsort(order), name)
