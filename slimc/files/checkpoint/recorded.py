"""What is left of the objects in a pickle when nothing of it is executed: names, and records of what they were given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# They pickle themselves as a list of pairs, a mapping or a factory, and get their entries one by one in later protocols.
_DICTS = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter")
# One list or dict may be part of any number of objects, each of which would copy it.
_MOST_COPIED = 4096


class UnreadableError(Exception):
    """A container or pickle that cannot be read; the message says why, in a few words that follow the file's name."""


class RefusedError(UnreadableError):
    """A pickle that means harm."""


class ForeignError(UnreadableError):
    """A file of something else.

    Args:
        what: it is, such as "a PNG image".
        advice: what to do about it, if there is any.
    """

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(what)
        self.advice = advice


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """A class or function that a pickle names: the name only, which nobody looks up."""

    name: str


@dataclass(eq=False, slots=True)
class Recorded:
    """An object that a pickle would have made, as a record of how.

    Attributes:
        name: the class or function that would have been called; of an object that is the result of a call, that of the
            function.
        arguments: what it would have been called with.
        state: what would have become its attributes, often a dict.
        items: what would have been appended, where it is a list or a set.
        entries: what would have been set in it, where it is a mapping.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] | None = None
    entries: dict[Any, Any] | None = None

    def growing_items(self) -> list[Any]:
        """`items`, to append to."""
        if self.items is None:
            self.items = []
        return self.items

    def growing_entries(self) -> dict[Any, Any]:
        """`entries`, to set in."""
        if self.entries is None:
            self.entries = {}
        return self.entries


def mapping(value: object) -> Mapping[Any, Any] | None:
    """The entries of a dict or of an object that was one; the attributes of any other object; none where there are none."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, Recorded):
        return None
    if value.entries:
        return value.entries
    if value.name in _DICTS:
        return _ordered(value.arguments)
    parts = _attributes(value)
    if len(parts) == 2 and len(parts[0]) + len(parts[1]) <= _MOST_COPIED:
        return {**parts[0], **parts[1]}
    return parts[0] if parts else None


def _attributes(value: Recorded) -> list[dict[Any, Any]]:
    """The attributes of an object, and those it has in slots."""
    parts = value.state if isinstance(value.state, tuple) and len(value.state) == 2 else (value.state,)
    if not all(part is None or isinstance(part, dict) for part in parts):
        return []
    return [part for part in parts if part]


def sequence(value: object) -> list[Any] | tuple[Any, ...] | None:
    """The elements of a list, tuple or set, or of an object that was one; none where it is something else."""
    if isinstance(value, (list, tuple)):
        return value
    if not isinstance(value, Recorded):
        return None
    if value.items:
        return value.items
    first = value.arguments[0] if value.arguments else ()
    wraps = value.name in ("builtins.set", "builtins.frozenset", "builtins.list", "builtins.tuple", "torch.Size")
    return first if wraps and isinstance(first, (list, tuple)) else None


def is_module(value: object) -> bool:
    """Whether it is a pickled torch.nn.Module."""
    return isinstance(value, Recorded) and any(
        "_modules" in part and "_parameters" in part for part in _attributes(value)
    )


def _ordered(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """The entries that a constructor was given, as Python 2 pickles ordered dicts and Python 3 pickles counters."""
    first = arguments[0] if arguments else None
    if isinstance(first, dict):
        return first
    return dict(_pairs(first)) if isinstance(first, (list, tuple)) and len(first) <= _MOST_COPIED else {}


def _pairs(values: list[Any] | tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    for pair in values:
        if isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str):
            yield pair[0], pair[1]
