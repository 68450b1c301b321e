"""The arrays of a model, whatever node they belong to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from slimc.ir.layers import FloatArray
from slimc.ir.nodes import Model

T = TypeVar("T")


def arrays(node: object) -> Iterator[FloatArray]:
    """Every floating-point array below `node`, in field order."""
    if isinstance(node, np.ndarray):
        if np.issubdtype(node.dtype, np.floating):
            yield node
    elif isinstance(node, tuple):
        for item in node:
            yield from arrays(item)
    elif dataclasses.is_dataclass(node):
        for field in dataclasses.fields(node):
            yield from arrays(getattr(node, field.name))


def map_arrays(node: T, change: Callable[[FloatArray], FloatArray]) -> T:
    """`node` with every floating-point array below it replaced by `change(array)`."""
    result: Any = node
    if isinstance(node, np.ndarray):
        result = change(node) if np.issubdtype(node.dtype, np.floating) else node
    elif isinstance(node, tuple):
        result = tuple(map_arrays(item, change) for item in node)
    elif dataclasses.is_dataclass(node) and not isinstance(node, type):
        fields = {f.name: map_arrays(getattr(node, f.name), change) for f in dataclasses.fields(node)}
        result = dataclasses.replace(node, **fields)
    return result  # type: ignore[no-any-return]


def to_float64(model: Model) -> Model:
    """`model` with float64 weights: what the passes are checked on."""
    return map_arrays(model, lambda array: array.astype(np.float64))
