"""The safetensors file that a slim file is: named arrays and texts, with a digest of all of it.

A slim file is hostile input until its sizes, types and offsets have been checked: nothing is taken on trust, and no more
memory is asked for than the file is long.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from slimc.files.slim.values import DamagedError, check_finite, parse

Array = npt.NDArray[Any]

FORMAT = "1"
_MARK = b'"slimc.format"'
_ZEROS = "0" * 64
_START = re.compile(rb'\{"__metadata__":\{"slimc\.format":"([^"]{1,20})","slimc\.sha256":"([0-9a-f]{64})"')
_LARGEST_HEADER = 1 << 24
_CHUNK = 1 << 22
_DTYPES: dict[str, np.dtype[Any]] = {"I64": np.dtype("<i8"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
_MOST_AXES = 4


@dataclass(frozen=True, eq=False)
class Tensor:
    """An array to write: `parts` joined along `axis`."""

    name: str
    parts: Sequence[Array]
    axis: int = 0

    @property
    def dtype(self) -> str:
        """As safetensors calls it."""
        kind = self.parts[0].dtype
        for name, dtype in _DTYPES.items():
            if kind == dtype:
                return name
        raise ValueError(f"{self.name}: {kind} has no place in a slim file")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the joined array."""
        shape = list(self.parts[0].shape)
        shape[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the joined array."""
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize

    def pieces(self) -> Iterator[Array]:
        """The numbers in the order of the file; no more is copied at a time than has to be."""
        whole = self.parts if self.axis == 0 else [np.concatenate(self.parts, axis=self.axis)]
        for part in whole:
            yield np.ascontiguousarray(part, _DTYPES[self.dtype])


def write_container(path: Path, texts: Mapping[str, str], tensors: Sequence[Tensor]) -> None:
    """Write `texts` and `tensors`; the same ones give the same bytes.

    Raises:
        DamagedError: a number is NaN or infinite.
        OSError: the file cannot be written.
    """
    tensors = sorted(tensors, key=lambda tensor: -_DTYPES[tensor.dtype].itemsize)  # so that all lie aligned
    metadata = {
        "slimc.format": FORMAT,
        "slimc.sha256": _ZEROS,
        **{f"slimc.{name}": text for name, text in texts.items()},
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        _write(file, digest, len(text).to_bytes(8, "little"))
        _write(file, digest, text)
        for tensor in tensors:
            for piece in tensor.pieces():
                check_finite(tensor.name, piece)
                _write(file, digest, piece.reshape(-1).view(np.uint8).data)
        match = _START.match(text)
        assert match is not None
        file.seek(8 + match.start(2))
        file.write(digest.hexdigest().encode("ascii"))


def _write(file: BinaryIO, digest: Any, data: bytes | memoryview) -> None:  # noqa: ANN401 - hashlib names no type
    file.write(data)
    digest.update(data)


def is_slim(path: Path) -> bool:
    """Whether the file at `path` is meant as a slim file, damaged or not."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return length <= _LARGEST_HEADER and _MARK in file.read(length)
    except OSError:
        return False


def read_container(path: Path) -> tuple[dict[str, str], dict[str, Array]]:
    """Texts and arrays by name; the arrays share one piece of memory.

    Raises:
        DamagedError: the file is not what `write_container` wrote.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        header, digest, stated = _begin(file, path.stat().st_size)
        data = np.empty(path.stat().st_size - file.tell(), np.uint8)
        for start in range(0, len(data), _CHUNK):
            chunk = data[start : start + _CHUNK].data
            if file.readinto(chunk) != len(chunk):
                raise DamagedError("it is cut off")
            digest.update(chunk)
    return _content(header, digest, stated, data)


def map_container(path: Path) -> tuple[dict[str, str], dict[str, Array], Callable[[], None]]:
    """The same, of arrays that are read when they are used, and a function that forgets what has been read of them.

    Whoever changes the file changes the arrays.
    """
    with path.open("rb") as file:
        header, digest, stated = _begin(file, path.stat().st_size)
        start = file.tell()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def forget() -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)

    return *_content(header, digest, stated, np.frombuffer(mapped, np.uint8)[start:]), forget


def _begin(file: BinaryIO, size: int) -> tuple[bytes, Any, bytes]:
    """The header of a file of this size, the digest up to there, and the digest that it states for all of the file."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
        raise DamagedError(f"its header cannot have {length:,} bytes")
    header = file.read(length)
    stated = _stated_digest(header)
    blank = header.replace(stated, _ZEROS.encode(), 1)
    return header, hashlib.sha256(length.to_bytes(8, "little") + blank), stated


def _content(header: bytes, digest: Any, stated: bytes, data: Array) -> tuple[dict[str, str], dict[str, Array]]:  # noqa: ANN401
    """Texts and arrays, once the digest of all of the file is known."""
    if digest.hexdigest().encode() != stated:
        raise DamagedError("its checksum does not match: it is damaged, or something else than slimc changed it")
    entries = parse(header)
    if not isinstance(entries, dict):
        raise DamagedError("its header is no JSON object")
    metadata = entries.pop("__metadata__")
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise DamagedError("its metadata are no texts")
    texts = {name.removeprefix("slimc."): text for name, text in metadata.items()}
    return texts, _arrays(entries, data)


def _stated_digest(header: bytes) -> bytes:
    """The digest that a header of this format states."""
    match = _START.match(header)
    if match is None:
        raise DamagedError("its header does not begin as that of a slim file")
    version = match[1].decode("ascii", "replace")
    if version != FORMAT:
        raise DamagedError(f"its format is {version[:20]!a}, and this slimc knows {FORMAT}; get a newer one")
    return match[2]


def _arrays(entries: Mapping[str, Any], data: Array) -> dict[str, Array]:
    """Views of `data`, which they cover without gaps."""
    places: list[tuple[int, int, str]] = []
    arrays: dict[str, Array] = {}
    for name, entry in entries.items():
        dtype, shape, (start, end) = _entry(name, entry)
        if end > len(data) or start % dtype.itemsize or end - start != math.prod(shape) * dtype.itemsize:
            raise DamagedError(f"{name[:80]!a} does not lie where it can")
        places.append((start, end, name))
        arrays[name] = data[start:end].view(dtype).reshape(shape)
    reached = 0
    for start, end, name in sorted(places):
        if start != reached:
            raise DamagedError(f"{name[:80]!a} does not begin where the array before it ends")
        reached = end
    if reached != len(data):
        raise DamagedError(f"has {len(data) - reached:,} bytes behind its arrays")
    return arrays


def _entry(name: str, entry: object) -> tuple[np.dtype[Any], tuple[int, ...], tuple[int, int]]:
    """Type, shape and offsets of an array."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise DamagedError(f"{name[:80]!a} is described by something else than dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise DamagedError(f"{name[:80]!a} is of the type {dtype!a:.20}, expected {', '.join(_DTYPES)}")
    if not _sizes(shape) or len(shape) > _MOST_AXES or not _sizes(offsets) or len(offsets) != 2:
        raise DamagedError(f"{name[:80]!a} has no shape or no offsets")
    return _DTYPES[dtype], tuple(shape), (offsets[0], offsets[1])


def _sizes(values: object) -> bool:
    """Whether these are numbers of elements or bytes."""
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48 for value in values
    )
