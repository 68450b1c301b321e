"""Cores of this machine that threads are to keep to while something is measured."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def usable() -> tuple[int, ...]:
    """The cores that this thread may run on, by number; none where the system cannot tell."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def count() -> int:
    """How many cores this process may use: those of its affinity mask, where the system has such a thing."""
    return len(usable()) or os.cpu_count() or 1


@contextmanager
def kept_to(cores: Iterable[int]) -> Iterator[None]:
    """Keep this thread, and threads that it starts, to `cores` while the body runs, where the system can do that."""
    before, wanted = usable(), set(cores)
    if not before or not wanted:
        yield
        return
    os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
