"""NumPy scalars and arrays as pickles record them, decoded without calling what the pickle names."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from slimc.files.checkpoint.recorded import Recorded

if TYPE_CHECKING:
    import numpy as np

# NumPy 2 moved numpy.core to numpy._core.
_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_FROM_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")


def is_scalar(value: Recorded) -> bool:
    """Whether it is a pickled NumPy scalar."""
    return value.name in _SCALAR


def is_array(value: object) -> bool:
    """Whether it is a pickled NumPy array."""
    return isinstance(value, Recorded) and value.name in (*_RECONSTRUCT, *_FROM_BUFFER)


def array_of(value: Recorded) -> np.ndarray[Any, Any] | None:
    """The array or, with no axes, the scalar; none where it is not of numbers, booleans or text, or contradicts itself."""
    import numpy as np

    parts = _parts(value)
    if parts is None:
        return None
    kind, shape, fortran, content = parts
    dtype, written = _dtype(kind), _written(content)
    if dtype is None or dtype.itemsize == 0 or not _is_shape(shape) or written is None:
        return None
    if math.prod(shape) * dtype.itemsize != len(written):
        return None
    try:
        flat = np.frombuffer(written.encode("latin-1") if isinstance(written, str) else written, dtype)
    except UnicodeEncodeError:
        return None
    array: np.ndarray[Any, Any] = flat.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))
    return array


def shape_of(value: Recorded) -> tuple[int, ...] | None:
    """The shape of an array, undecoded."""
    parts = _parts(value)
    return tuple(parts[1]) if parts is not None and _is_shape(parts[1]) else None


def _parts(value: Recorded) -> tuple[object, Any, bool, object] | None:
    """The type, shape, order and bytes that an array was pickled as."""
    arguments, state = value.arguments, value.state
    if value.name in _SCALAR and len(arguments) == 2:
        return arguments[0], (), False, arguments[1]
    if value.name in _RECONSTRUCT and isinstance(state, tuple) and len(state) == 5:
        return state[2], state[1], bool(state[3]), state[4]
    if value.name in _FROM_BUFFER and len(arguments) == 4:
        return arguments[1], arguments[2], arguments[3] == "F", arguments[0]
    return None


def _dtype(value: object) -> np.dtype[Any] | None:
    import numpy as np

    if not isinstance(value, Recorded) or value.name != "numpy.dtype" or not value.arguments:
        return None
    name = value.arguments[0]
    if not isinstance(name, str) or not re.fullmatch(r"[biuf][1248]|[US]\d{1,4}", name):
        return None
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "="
    big = order in (">", b">")
    try:
        return np.dtype((">" if big else "<") + name)
    except TypeError:
        return None


def _written(value: object) -> str | bytes | None:
    """Bytes, which protocol 2 has no way to write but as text that is to be encoded in latin-1."""
    for name in ("builtins.bytearray", "builtins.bytes", "_codecs.encode"):
        if isinstance(value, Recorded) and value.name == name and value.arguments:
            value = value.arguments[0]
    return value if isinstance(value, (str, bytes)) else None


def _is_shape(shape: object) -> bool:
    return isinstance(shape, tuple) and len(shape) <= 16 and all(type(n) is int and 0 <= n < 1 << 40 for n in shape)
