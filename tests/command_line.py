"""Running the command line in this process, which spares importing torch for every test."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slimc.cli import main as cli


@dataclass(frozen=True)
class Outcome:
    """Exit code and what was printed."""

    code: int
    stdout: str
    stderr: str


def slimc(*arguments: str | Path) -> Outcome:
    """Run ``slimc ARGUMENTS...``."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with _argv(["slimc", *map(str, arguments)]), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = cli.run()
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def _argv(arguments: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, arguments
    try:
        yield
    finally:
        sys.argv = before


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every file below `directory`, hidden ones too, with its content; directories have none."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b"" for path in directory.rglob("*")
    }


def assert_refused(*given: str | Path, code: int = 2, match: str = "", directory: Path) -> None:
    """``slimc GIVEN...`` ends with `code` and one line that has `match` in it, and leaves `directory` as it was."""
    before = snapshot(directory)
    outcome = slimc(*given)
    assert outcome.code == code, outcome.stderr
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("error: ")
    assert outcome.stderr.count("\n") == 1
    assert match in outcome.stderr
    assert snapshot(directory) == before
