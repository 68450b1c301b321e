"""Running the command line in a process of its own on a pseudo terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "slimc")
# What a terminal understands besides text: colours, moves of the cursor, hiding it.
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:[349][0-7]|38;[0-9;]*|48;[0-9;]*)m")


@dataclass(frozen=True)
class Screen:
    """Exit code, and all that was written to the terminal, with and without what controls it."""

    code: int
    raw: str

    @property
    def text(self) -> str:
        """All that was ever written, also what was erased again."""
        return CONTROL.sub("", self.raw).replace("\r\n", "\n")

    @property
    def lines(self) -> list[str]:
        """What can be seen in the end."""
        rows, row, column = [""], 0, 0
        for part in re.findall(f"{CONTROL.pattern}|[\r\n]|[^\r\n\x1b]+", self.raw):
            if part == "\r":
                column = 0
            elif part == "\n":
                row += 1
                rows += [""] * (row == len(rows))
            elif up := re.fullmatch(r"\x1b\[(\d+)A", part):
                row -= int(up[1])
            elif part == "\x1b[2K":
                rows[row] = ""
            elif not part.startswith("\x1b"):
                rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + len(part) :]
                column += len(part)
        return "\n".join(rows).rstrip().split("\n")


def environment(**changes: str | None) -> dict[str, str]:
    """This process's environment without what decides how terminals look, changed by `changes`; None removes."""
    left_out = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM", "CI"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    kept |= {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    return {name: value for name, value in {**kept, **changes}.items() if value is not None}


def on_terminal(
    *arguments: str | Path,
    columns: int = 80,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    interrupt: Callable[[str], bool] | None = None,
    timeout: float = 120,
) -> Screen:
    """Run ``slimc ARGUMENTS...`` on a terminal of `columns`; Ctrl-C is pressed once `interrupt` accepts what was written."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=cwd,
        env=environment() if env is None else dict(env),
        start_new_session=True,
        preexec_fn=_take_terminal,  # noqa: PLW1509 - nothing but an ioctl
    )
    os.close(slave)
    try:
        raw = _read(master, process, interrupt, time.monotonic() + timeout)
        return Screen(process.wait(timeout=10), raw)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _take_terminal() -> None:
    """Make the terminal the process's own, so that Ctrl-C reaches it as a signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read(
    master: int, process: subprocess.Popen[bytes], interrupt: Callable[[str], bool] | None, deadline: float
) -> str:
    written = b""
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.05)[0]:
            try:
                part = os.read(master, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            written += part
        elif process.poll() is not None:
            break
        if interrupt is not None and interrupt(written.decode(errors="replace")):
            os.write(master, b"\x03")
            interrupt = None
    return written.decode(errors="replace")
