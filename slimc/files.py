"""Writing files so that nothing is ever half-written: to a temporary file beside the target, then renamed."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slimc.errors import OutputError


def check_writable(path: Path) -> None:
    """Find out before any work whether `path` can be written.

    Raises:
        OutputError: it is a directory, or its directory is missing or not writable.
    """
    if path.is_dir():
        raise OutputError(f"{path}: is a directory; expected a file name")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the directory {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: the directory {path.parent} is not writable")


@contextmanager
def replacing(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Temporary paths for `targets`, renamed into place together when the body ends well and removed when it does not.

    Each temporary lies in its target's directory, in a directory of its own, under the target's name: a file that refers
    to another by name (ONNX external data) needs no change when both are moved. A target that the body does not write
    is removed: it belonged to what is replaced.

    Raises:
        OutputError: the operating system refused to write.
    """
    for target in targets:
        check_writable(target)
    try:
        with tempfile.TemporaryDirectory(dir=targets[0].parent, prefix=".slimc-") as directory:
            temporary = tuple(Path(directory) / target.name for target in targets)
            yield temporary
            for source in temporary:
                if source.exists():
                    _sync(source)
            with _uninterrupted():
                for source, target in zip(temporary, targets, strict=True):
                    if source.exists():
                        source.replace(target)
                    else:
                        target.unlink(missing_ok=True)
    except OSError as error:
        if error.errno is None:
            raise
        raise OutputError(f"{targets[0]}: cannot be written: {error.strerror}") from error


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM while the body runs: the files it renames belong together."""
    blocked = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _sync(path: Path) -> None:
    """Flush `path` to disk, so that a rename never exposes an empty file after a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
