"""What commands print: tables and progress for people, one JSON object for machines, nothing when quiet."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from slimc.evaluate.progress import Advance

# A pipe has no width: tables keep all their columns there.
_PIPE_WIDTH = 160


@dataclass(frozen=True)
class Output:
    """Where a command's words go. With `json` only the JSON object reaches stdout; with `quiet` only errors are printed."""

    json: bool = False
    quiet: bool = False

    def print(self, *what: RenderableType) -> None:
        """Print for people, on stdout."""
        if not (self.json or self.quiet):
            console = _console()
            # Programs that read lines get them whole.
            console.print(*what, highlight=False, markup=False, soft_wrap=not console.is_terminal)

    def warn(self, text: str) -> None:
        """Print a warning, on stderr."""
        if not self.quiet:
            _console(stderr=True).print(f"[yellow]warning:[/yellow] {_escape(text)}", highlight=False, soft_wrap=True)

    def result(
        self,
        command: str,
        values: Mapping[str, Any],
        *,
        inputs: Mapping[Path, str | None] | None = None,
        outputs: Sequence[Path] = (),
    ) -> None:
        """Print the machine-readable result, where that was asked for; docs/reference/json.md says what is in it.

        Args:
            command: whose result it is.
            values: what the command found.
            inputs: files that were read, but for the images of a folder, with their SHA-256 where it is known already.
            outputs: files that were written.
        """
        if not self.json:
            return
        from slimc.backends import host
        from slimc.errors import InternalError
        from slimc.files.digest import sha256
        from slimc.files.version import VERSION

        read = [{"path": str(path), "sha256": known or sha256(path)} for path, known in (inputs or {}).items()]
        written = [{"path": str(path), "sha256": sha256(path)} for path in outputs]
        header = {"slimc": VERSION, "command": command, "host": host.describe(), "inputs": read, "outputs": written}
        if taken := header.keys() & values.keys():
            raise InternalError(f"--json: {', '.join(sorted(taken))} would stand in the place of the header's")
        sys.stdout.write(json.dumps({**header, **values}, indent=2, default=_plain, allow_nan=False) + "\n")

    @contextmanager
    def progress(self, text: str) -> Iterator[Advance]:
        """Show `text` while the body runs, with a bar and a count once it tells them: on stderr, only on a terminal."""
        console = _console(stderr=True)
        if self.json or self.quiet or not console.is_terminal or console.is_dumb_terminal:
            yield lambda _done, _total: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (SpinnerColumn(), TextColumn("{task.description}"))
        counted = (BarColumn(), MofNCompleteColumn(), Remaining())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(_escape(text), total=None)

            def advance(done: int, total: int) -> None:
                if len(bar.columns) == len(columns):
                    bar.columns = (*columns, *counted)
                bar.update(task, completed=done, total=total)

            yield advance

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, figures: bool = True
    ) -> None:
        """Print a table: the first column is left-aligned, the others too unless they are `figures`.

        Where it does not fit into the terminal, every row is printed as lines of a column's name and the cell.
        """
        if self.json or self.quiet:
            return
        from rich import box
        from rich.measure import Measurement
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if i and figures else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        console = _console()
        if Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width:
            self.print(table)
        else:
            self.print(_folded(title, columns, rows, console.width))

    def terms(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Print what words mean: the word at the left, its text beside it in as many lines as that needs."""
        if not (self.json or self.quiet):
            self.print("\n".join(_terms(pairs, _console().width)))


def _folded(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], width: int) -> str:
    """A table for narrow terminals: a row is its first cell and, indented below it, the others by their columns."""
    lines = [title] if title else []
    for row in rows:
        lines.append(f"{columns[0]} {row[0]}".strip())
        named = [(column, str(cell)) for column, cell in zip(columns[1:], row[1:], strict=True) if str(cell)]
        lines += _terms(named, width, indent="  ")
    return "\n".join(lines) + "\n"


def _terms(pairs: Sequence[tuple[str, str]], width: int, *, indent: str = "") -> list[str]:
    """Lines of up to `width` columns that say what words mean."""
    import textwrap

    longest = max((len(word) for word, _ in pairs), default=0)
    below = indent + " " * (longest + 2)
    lines: list[str] = []
    wrapper = textwrap.TextWrapper(width, subsequent_indent=below, break_long_words=False, break_on_hyphens=False)
    for word, text in pairs:
        wrapper.initial_indent = f"{indent}{word:<{longest}}  "
        lines += wrapper.wrap(text)
    return lines


def print_error(text: str) -> None:
    """Print a user's mistake as one line on stderr."""
    _console(stderr=True).print(f"[red]error:[/red] {_escape(text)}", highlight=False, soft_wrap=True)


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _PIPE_WIDTH)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split()))


def _plain(value: Any) -> Any:  # noqa: ANN401 - what json does not know
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
