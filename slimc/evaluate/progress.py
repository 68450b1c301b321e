"""Telling a person what is going on, and for how long it did."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int, int], None]
"""Says how many of how many steps are done."""

Progress = Callable[[str], AbstractContextManager[Advance]]
"""Shows a text while the body of its context runs, and how far the body is where that is told."""


def unheard(_done: int, _total: int) -> None:
    """Tells nobody how far anything is."""


@contextmanager
def silent(_text: str) -> Iterator[Advance]:
    """Progress that shows nothing."""
    yield unheard


class Stopwatch:
    """Milliseconds by the name of the stage they were spent in; shows every stage as it begins."""

    def __init__(self, progress: Progress) -> None:
        self.milliseconds: dict[str, float] = {}
        self._progress = progress
        self._start = time.perf_counter()

    @contextmanager
    def stage(self, name: str, text: str) -> Iterator[Advance]:
        """Show `text` while the body runs, and add its time to that of `name`."""
        start = time.perf_counter()
        with self._progress(text) as advance:
            yield advance
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + 1e3 * (time.perf_counter() - start)

    def add(self, milliseconds: Mapping[str, float]) -> None:
        """Take over the times of stages that another stopwatch measured while this one ran."""
        for name, spent in milliseconds.items():
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + spent

    def total(self) -> dict[str, float]:
        """The times of all stages, and ``total`` since the stopwatch was made."""
        return {**self.milliseconds, "total": 1e3 * (time.perf_counter() - self._start)}
