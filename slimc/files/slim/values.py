"""Values of JSON that nobody vouches for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

_CHUNK = 1 << 20


class DamagedError(Exception):
    """A slim file that contradicts itself or its format; the text says how, without naming the file."""


def parse(text: str | bytes) -> Any:  # noqa: ANN401 - JSON
    """`text` as JSON in the strict sense: no NaN, no name twice.

    Raises:
        DamagedError: it is none.
    """
    try:
        plain = text.decode("ascii") if isinstance(text, bytes) else text
        return json.loads(plain, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"its header is no JSON ({type(error).__name__})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise DamagedError("its header says something twice")
    return found


def _constant(name: str) -> float:
    raise DamagedError(f"its header has the number {name}")


def check_finite(name: str, array: npt.NDArray[Any]) -> None:
    """Check that no number of `array` is NaN or infinite, a few at a time.

    Raises:
        DamagedError: one is.
    """
    flat = array.reshape(-1)
    if not all(np.isfinite(flat[i : i + _CHUNK]).all() for i in range(0, len(flat), _CHUNK)):
        raise DamagedError(f"{name[:80]!a} has a number that is NaN or infinite")


def is_int(value: object) -> bool:
    """Whether it is an integer, and not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool)
