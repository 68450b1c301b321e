"""From the structure and the arrays of a slim file to a model, which nobody vouches for until it is checked."""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

from slimc import ir
from slimc.errors import ValidationError
from slimc.files.slim.container import Array
from slimc.files.slim.nodes import AXES, NODES, fields_of
from slimc.files.slim.values import DamagedError, check_finite, is_int
from slimc.ir.validate import validate

T = TypeVar("T")

_REFERENCE = re.compile(r"([^\[\]]{1,200})(?:\[(:,)?(\d{1,9}):(\d{1,9})\])?")
_MOST_ITEMS = 1 << 14
_LARGEST_INTEGER = 1 << 31
_MOST_ROWS = 1 << 20
_LARGEST_IMAGE = 1 << 15


def decode(structure: object, arrays: Mapping[str, Array], *, shapes: bool = False, finite: bool = False) -> ir.Model:
    """The model that a structure and all of the `arrays` make; it is valid.

    Args:
        structure: JSON.
        arrays: by name.
        shapes: whether weights are but shapes.
        finite: whether it is known that all numbers are finite, so that none has to be read.

    Raises:
        DamagedError: they make none.
    """
    decoder = _Decoder(arrays, shapes=shapes)
    model = decoder.node(structure, (ir.Model,), "network")
    assert isinstance(model, ir.Model)
    decoder.finish()
    for name, array in () if finite else arrays.items():
        check_finite(name, array)
    _check(model)
    return model


class _Decoder:
    """Makes nodes of JSON; `place` is where they are, for messages."""

    def __init__(self, arrays: Mapping[str, Array], *, shapes: bool) -> None:
        self._arrays = arrays
        self._shapes = shapes
        self._taken: defaultdict[str, list[tuple[int, int, int]]] = defaultdict(list)
        self._rotations: dict[tuple[str, str], ir.Rotation] = {}

    def node(self, found: object, kinds: tuple[type, ...], place: str) -> Any:  # noqa: ANN401
        """A node of one of these `kinds`."""
        kind = NODES.get(str(found.get("node"))) if isinstance(found, dict) else None
        if kind not in kinds or not isinstance(found, dict):
            raise DamagedError(f"{place} is no {' or '.join(each.__name__ for each in kinds)}")
        if kind is ir.Rotation:
            return self._rotation(found, place)
        return self._filled(kind, found, place)

    def _filled(self, kind: type, found: Mapping[str, Any], place: str) -> Any:  # noqa: ANN401
        fields = fields_of(kind.__name__)
        unknown = set(found) - set(fields) - {"node"}
        if unknown:
            raise DamagedError(f"{place} has {min(unknown)[:40]!a}, which is unknown")
        values = {}
        for name, (hint, default) in fields.items():
            if name in found:
                axes = AXES.get(kind.__name__, {}).get(name, 0)
                values[name] = self.value(found[name], hint, f"{place}.{name}", axes)
            elif default is dataclasses.MISSING:
                raise DamagedError(f"{place}.{name} is missing")
        return kind(**values)

    def _rotation(self, found: Mapping[str, Any], place: str) -> ir.Rotation:
        """A rotation; those that have the same tables are one."""
        key = str(found.get("cos")), str(found.get("sin"))
        if key not in self._rotations:
            self._rotations[key] = self._filled(ir.Rotation, found, place)
        return self._rotations[key]

    def value(self, found: object, hint: Any, place: str, axes: int) -> Any:  # noqa: ANN401
        """What a field of the type `hint` holds; where that is an array, it has so many `axes`."""
        origin, inner = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            return self._one_of(found, inner, place, axes)
        if origin is tuple:
            return self._items(found, inner, place)
        if origin is np.ndarray:
            return self._array(found, place, axes, integers="int64" in str(hint))
        if origin is Literal:
            return _checked(found, isinstance(found, str) and found in inner, place)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return self.node(found, (hint,), place)
        if hint is bool or hint is str:
            return _checked(found, isinstance(found, hint) and len(str(found)) < 200, place)
        if hint is int:
            return _checked(found, is_int(found) and abs(found) < _LARGEST_INTEGER, place)  # type: ignore[arg-type]
        assert hint is float, hint
        number = float(found) if isinstance(found, float) or (is_int(found) and abs(found) < 1e15) else math.nan  # type: ignore[arg-type]
        return _checked(number, math.isfinite(number), place)

    def _one_of(self, found: object, kinds: tuple[Any, ...], place: str, axes: int) -> Any:  # noqa: ANN401
        if found is None and type(None) in kinds:
            return None
        others = tuple(kind for kind in kinds if kind is not type(None))
        return self.value(found, others[0], place, axes) if len(others) == 1 else self.node(found, others, place)

    def _items(self, found: object, kinds: tuple[Any, ...], place: str) -> tuple[Any, ...]:
        if not isinstance(found, list) or len(found) > _MOST_ITEMS:
            raise DamagedError(f"{place} is no list")
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(found)
        if len(kinds) != len(found):
            raise DamagedError(f"{place} is no list of {len(kinds)}")
        return tuple(
            self._one_of(item, get_args(kind) or (kind,), f"{place}.{i}", 0)
            for i, (item, kind) in enumerate(zip(found, kinds, strict=True))
        )

    def _array(self, found: object, place: str, axes: int, *, integers: bool) -> Array:
        """An array by its name, or one of zeros where only its shape was kept."""
        if self._shapes and not integers:
            return _shaped(found, place, axes)
        match = _REFERENCE.fullmatch(found) if isinstance(found, str) else None
        whole = None if match is None else self._arrays.get(match[1])
        if match is None or whole is None:
            raise DamagedError(f"{place} names no array")
        if whole.ndim != axes or np.issubdtype(whole.dtype, np.integer) != integers:
            raise DamagedError(f"{place} is an array of another kind than expected")
        axis = 0 if match[2] is None else 1
        if axis >= axes:
            raise DamagedError(f"{place} has no columns")
        start, stop = (0, whole.shape[0]) if match[3] is None else (int(match[3]), int(match[4]))
        if not 0 <= start <= stop <= whole.shape[axis]:
            raise DamagedError(f"{place} is beyond the end of its array")
        self._taken[match[1]].append((axis, start, stop))
        return whole[start:stop] if axis == 0 else whole[:, start:stop]

    def finish(self) -> None:
        """Check that every number belongs to the model, once.

        Raises:
            DamagedError: one does not.
        """
        for name, array in self._arrays.items():
            taken = sorted(self._taken[name])
            ends = [(axis, stop) for axis, _, stop in taken]
            starts = [(axis, start) for axis, start, _ in taken]
            axis = taken[0][0] if taken else 0
            if not taken or starts != [(axis, 0), *ends[:-1]] or ends[-1][1] != array.shape[axis]:
                raise DamagedError(f"{name[:80]!a} is not taken whole and once")


def _checked(value: T, holds: bool, place: str) -> T:
    if not holds:
        raise DamagedError(f"{place} is {value!a:.40}, which it cannot be")
    return value


def _shaped(shape: object, place: str, axes: int) -> Array:
    """Zeros of this shape that take no memory."""
    sizes: list[Any] = shape if isinstance(shape, list) else [None]
    if len(sizes) != axes or not all(is_int(size) and 0 <= size <= _MOST_ROWS for size in sizes):
        raise DamagedError(f"{place} is no shape of {axes} axes")
    return np.broadcast_to(np.float32(0), sizes)


def _check(model: ir.Model) -> None:
    """Check that a model is valid, and no larger than any network is.

    Raises:
        DamagedError: it is not.
    """
    try:
        _check_sizes(model)
        validate(model)
    except ValidationError as error:
        raise DamagedError(f"its network contradicts itself: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DamagedError(f"its network contradicts itself ({type(error).__name__})") from None


def _check_sizes(model: ir.Model) -> None:
    """What validation takes for granted, and what would take memory that the file does not."""
    for stage in model.embedding.stem:
        window = stage.side if isinstance(stage, ir.SoftSplit) else stage.weight.shape[2]
        padding = stage.padding if isinstance(stage, ir.SoftSplit) else 0
        if not (1 <= stage.stride <= window <= _LARGEST_IMAGE and 0 <= padding <= window):
            raise ValidationError(f"embedding.stem: windows of {window} pixels with a stride of {stage.stride}")
    if not all(1 <= side <= _LARGEST_IMAGE for side in (*model.image, *model.patch, model.dim)):
        raise ValidationError(f"image: of {model.image} pixels, in patches of {model.patch}")
    counts = [model.prefix + math.prod(model.grid)]
    for block in model.blocks:
        attention, select, gates = block.attention, block.select, block.gates
        if isinstance(attention, ir.Attention):
            counts.append(abs(attention.ghosts))
        if select is not None and not select.drop:
            raise ValidationError(f"{block.name}: hides tokens instead of dropping them")
        if gates is not None and gates.tokens is not None and block.attention is None and block.mlp is None:
            raise ValidationError(f"{block.name}: chooses tokens for nothing")
    if max(counts) > _MOST_ROWS:
        raise ValidationError(f"{max(counts):,} rows: more than {_MOST_ROWS:,}")
