"""Tensors as a file describes them, and how their numbers are read: with bounds that torch does not check."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from slimc.files.checkpoint.recorded import Global, UnreadableError

if TYPE_CHECKING:
    import torch

# The element types of storages as torch's classes are named. An untyped storage is counted in bytes.
_STORAGES = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128", "Untyped": "uint8",
}  # fmt: skip
_MOST_AXES = 16


class Source(Protocol):
    """Where storages lie."""

    def read(self, storage: Storage) -> torch.UntypedStorage:
        """The bytes of a storage.

        Raises:
            UnreadableError: there are none, or another number of them.
        """


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A storage that a pickle refers to: `count` elements of `dtype` under `key`, of which a view starts at `offset`."""

    key: str
    dtype: str
    count: int
    offset: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Stored:
    """A tensor in a file.

    Attributes:
        shape: as the file has it.
        place: where its numbers lie; the same for two tensors only if they are one.
        nbytes: what its numbers take, were they on their own.
        read: makes the tensor, which shares memory with the file where it can; raises UnreadableError.
    """

    shape: tuple[int, ...]
    place: Hashable
    nbytes: int
    read: Callable[[], torch.Tensor]


def storage_of(identity: object) -> Storage | None:
    """The storage that a persistent id of torch means; none where it means something else."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        return None
    kind, key, _location, count, *view = identity[1:]
    match = re.fullmatch(r"torch(?:\.storage|\.cuda)?\.(\w+)Storage", kind.name) if isinstance(kind, Global) else None
    if match is None or match[1] not in _STORAGES or not isinstance(key, str) or not _size(count):
        return None
    offset = 0
    if view and view[0] is not None:
        if not isinstance(view[0], tuple) or len(view[0]) != 3 or not _size(view[0][1]):
            return None
        offset = view[0][1]
    return Storage(key, _STORAGES[match[1]], count, offset)


def rebuilt(name: str, arguments: tuple[Any, ...], source: Source) -> Stored | None:
    """The tensor that a call of torch's function `name` would make; none where it makes no dense tensor."""
    if name == "torch._tensor._rebuild_from_type_v2" and arguments and isinstance(arguments[0], Global):
        inner = arguments[2] if len(arguments) > 2 else None
        return rebuilt(arguments[0].name, inner, source) if isinstance(inner, tuple) else None
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state") and arguments:
        return arguments[0] if isinstance(arguments[0], Stored) else None
    most = {"_rebuild_tensor": 4, "_rebuild_tensor_v2": 6, "_rebuild_tensor_v3": 7}.get(
        name.removeprefix("torch._utils.")
    )
    if most is None or len(arguments) < most or not isinstance(arguments[0], Storage):
        return None
    storage, offset, size, stride = arguments[:4]
    dtype = storage.dtype
    if most == 7:
        if not isinstance(arguments[6], Global):
            return None
        dtype = arguments[6].name.removeprefix("torch.")
    changed = arguments[most : most + 1]  # whether its numbers are to be negated or conjugated
    plain = (
        isinstance(size, (tuple, list)) and isinstance(stride, (tuple, list)) and len(size) == len(stride) <= _MOST_AXES
    )
    if not plain or not all(map(_size, (*size, *stride, offset))) or any(changed):
        return None
    return _Layout(storage, dtype, offset, tuple(size), tuple(stride)).stored(source)


@dataclass(frozen=True, eq=False, slots=True)
class _Layout:
    """A tensor in a storage, in elements."""

    storage: Storage
    dtype: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def stored(self, source: Source) -> Stored:
        place = (self.storage.key, self.storage.offset, self.dtype, self.offset, self.size, self.stride)
        nbytes = math.prod(self.size) * _width(self.dtype)
        return Stored(self.size, place, nbytes, lambda: self.tensor(source))

    def tensor(self, source: Source) -> torch.Tensor:
        import torch

        dtype = getattr(torch, self.dtype, None) if re.fullmatch(r"[a-z]+\w*", self.dtype) else None
        if not isinstance(dtype, torch.dtype):
            raise UnreadableError(
                f"has a tensor of the type {ascii(self.dtype)[:40]}, which this PyTorch does not know"
            )
        memory, width = source.read(self.storage), dtype.itemsize
        start = self.offset * width + self.storage.offset * _width(self.storage.dtype)
        numbers = math.prod(self.size)
        last = sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True)) if numbers else -1
        if start + (last + 1) * width > memory.nbytes() or numbers * width > memory.nbytes():
            raise UnreadableError(f"has a tensor of {numbers:,} numbers in a storage of {memory.nbytes():,} bytes")
        if start % width:
            raise UnreadableError("has a tensor that begins in the middle of a number")
        return torch.empty(0, dtype=dtype).set_(memory, start // width, self.size, self.stride)


def _width(dtype: str) -> int:
    """Bytes of a number, as far as the name tells: bfloat16, complex64, float8_e5m2."""
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else 1


def _size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48
