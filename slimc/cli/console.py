"""What commands print: tables and progress for people, one JSON object for machines, nothing when quiet."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


@dataclass(frozen=True)
class Output:
    """Where a command's words go. With `json` only the JSON object reaches stdout; with `quiet` only errors are printed."""

    json: bool = False
    quiet: bool = False

    def print(self, *what: RenderableType) -> None:
        """Print for people, on stdout."""
        if not (self.json or self.quiet):
            _console().print(*what, highlight=False, markup=False)

    def warn(self, text: str) -> None:
        """Print a warning, on stderr."""
        if not self.quiet:
            _console(stderr=True).print(f"[yellow]warning:[/yellow] {_escape(text)}", highlight=False, soft_wrap=True)

    def result(self, values: Mapping[str, Any]) -> None:
        """Print the machine-readable result, where that was asked for."""
        if self.json:
            sys.stdout.write(json.dumps(values, indent=2, default=_plain) + "\n")

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show a spinner with `text` while the body runs: on stderr, and only on a terminal."""
        console = _console(stderr=True)
        if self.json or self.quiet or not console.is_terminal:
            yield
            return
        with console.status(text):
            yield

    @contextmanager
    def progress(self, text: str) -> Iterator[Callable[[float], None]]:
        """A bar with `text` that the body moves by telling which share is done: on stderr, and only on a terminal."""
        console = _console(stderr=True)
        if self.json or self.quiet or not console.is_terminal:
            yield lambda _: None
            return
        from rich.progress import Progress

        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(text, total=1.0)
            yield lambda share: bar.update(task, completed=share)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, figures: bool = True
    ) -> None:
        """Print a table: the first column is left-aligned, the others too unless they are `figures`."""
        if self.json or self.quiet:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if i and figures else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        self.print(table)


def print_error(text: str) -> None:
    """Print a user's mistake as one line on stderr."""
    _console(stderr=True).print(f"[red]error:[/red] {_escape(text)}", highlight=False, soft_wrap=True)


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # A pipe has no width: tables keep all their columns there.
    return Console(file=stream, width=None if stream.isatty() else 160)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split()))


def _plain(value: Any) -> Any:  # noqa: ANN401 - what json does not know
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
