"""From a model to the structure and the arrays of a slim file."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from slimc import ir
from slimc.files.slim.container import Array, Tensor
from slimc.files.slim.nodes import COLUMNS, MASKS, NODES, fields_of


def encode(model: ir.Model, *, shapes_only: bool = False, prefix: str = "") -> tuple[dict[str, Any], list[Tensor]]:
    """The structure of `model`, for JSON, and its arrays.

    Args:
        model: it has no masks.
        shapes_only: leave out the numbers of its weights.
        prefix: of the names of the arrays.
    """
    encoder = _Encoder(prefix, shapes_only=shapes_only)
    return encoder.node(model, ""), list(encoder.tensors.values())


class _Encoder:
    """Collects arrays while it walks over a model; `path` is where a node or an array is."""

    def __init__(self, prefix: str, *, shapes_only: bool) -> None:
        self._prefix = prefix
        self._shapes_only = shapes_only
        self._rotations: dict[object, str] = {}
        self.tensors: dict[str, Tensor] = {}

    def node(self, node: Any, path: str) -> dict[str, Any]:  # noqa: ANN401 - a node of the IR
        """A node as JSON."""
        name = type(node).__name__
        if name not in NODES:
            raise TypeError(f"{path}: {name} has no place in a slim file")
        if isinstance(node, ir.Rotation):
            path = self._rotation(node)
        return {"node": name, **{field: self.value(value, _below(path, field)) for field, value in _stated(node, path)}}

    def value(self, value: Any, path: str) -> Any:  # noqa: ANN401 - what a field of a node holds
        """What a field holds as JSON."""
        if isinstance(value, np.ndarray):
            return self._array(path, value)
        if isinstance(value, tuple):
            if not self._shapes_only and value and isinstance(value[0], (ir.Head, ir.LatentHead)):
                return self._heads(value, path)
            return [self.value(item, _below(path, str(i))) for i, item in enumerate(value)]
        if dataclasses.is_dataclass(value):
            return self.node(value, path)
        return value.item() if isinstance(value, np.generic) else value

    def _array(self, path: str, *parts: Array, axis: int = 0) -> str | list[int]:
        """The name of an array, or its shape where that is all that is kept."""
        if self._shapes_only and np.issubdtype(parts[0].dtype, np.floating):
            return list(parts[0].shape)
        name = self._prefix + path
        self.tensors[name] = Tensor(name, parts, axis)
        return name

    def _rotation(self, rotation: ir.Rotation) -> str:
        """Where the tables of a rotation are: equal ones are kept once."""
        tables = [np.ascontiguousarray(table) for table in (rotation.cos, rotation.sin)]
        key = tuple((table.dtype.str, table.shape, hashlib.sha256(table.tobytes()).digest()) for table in tables)
        return self._rotations.setdefault(key, f"rotations.{len(self._rotations)}")

    def _heads(self, heads: Sequence[ir.Head] | Sequence[ir.LatentHead], path: str) -> list[dict[str, Any]]:
        """Heads as JSON, their arrays of one kind joined to one."""
        joined: defaultdict[str, list[Array]] = defaultdict(list)
        for head in heads:
            for kind, array in _arrays_of(head):
                joined[kind].append(array)
        names = {
            kind: self._array(_below(path, kind), *parts, axis=int(kind in COLUMNS)) for kind, parts in joined.items()
        }
        ends: defaultdict[str, int] = defaultdict(int)
        found = []
        for head in heads:
            node: dict[str, Any] = {"node": type(head).__name__}
            for field, value in _stated(head, path):
                if isinstance(value, ir.Linear):
                    parts = {key: _slice(names, ends, f"{field}.{key}", part) for key, part in _stated(value, path)}
                    node[field] = {"node": "Linear", **parts}
                elif isinstance(value, np.ndarray):
                    node[field] = _slice(names, ends, field, value)
                else:
                    node[field] = self.value(value, _below(path, field))
            found.append(node)
        return found


def _slice(names: dict[str, Any], ends: dict[str, int], kind: str, array: Array) -> str:
    """What of a joined array a head has, which comes behind what the head before it has."""
    axis = int(kind in COLUMNS)
    start = ends[kind]
    ends[kind] = end = start + array.shape[axis]
    return f"{names[kind]}[{':,' * axis}{start}:{end}]"


def _arrays_of(head: ir.Head | ir.LatentHead) -> Iterator[tuple[str, Array]]:
    """The arrays of a head by name, without tables of rotations."""
    for field, value in _stated(head, ""):
        if isinstance(value, np.ndarray):
            yield field, value
        elif isinstance(value, ir.Linear):
            yield from ((f"{field}.{part}", array) for part, array in _stated(value, ""))


def _stated(node: object, path: str) -> Iterator[tuple[str, Any]]:
    """The fields of a node that have another value than their default."""
    for mask in MASKS.get(type(node).__name__, ()):
        if getattr(node, mask) is not None:
            raise ValueError(f"{path}: has a {mask}, which has no place in a slim file")
    for field, (_, default) in fields_of(type(node).__name__).items():
        value = getattr(node, field)
        plain = isinstance(value, (int, float, str))
        if value is not default and not (plain and value == default):
            yield field, value


def _below(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field
