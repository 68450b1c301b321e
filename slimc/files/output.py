"""Writing files so that nothing is ever half-written: to a temporary file beside the target, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from slimc.errors import OptionError, OutputError


def check_writable(path: Path) -> None:
    """Find out before any work whether `path` can be written; where it is a link, what it leads to.

    Raises:
        OutputError: it is no regular file, or its directory is missing or not writable.
    """
    target = _followed(path)
    if target.is_dir():
        raise OutputError(f"{path}: is a directory; expected a file name")
    if target.exists() and not target.is_file():
        raise OutputError(f"{path}: is a pipe, a socket or a device, which is left alone; expected a file name")
    leads = "" if target == path else f" (a link to {target})"
    if not target.parent.is_dir():
        raise OutputError(f"{path}{leads}: the directory {target.parent} does not exist")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{path}{leads}: the directory {target.parent} is not writable")


def _followed(path: Path) -> Path:
    """What `path` leads to where it is a link; else `path` itself.

    Raises:
        OutputError: links lead in a circle.
    """
    if not path.is_symlink():
        return path
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # Python before 3.13 raises the latter
        raise OutputError(f"{path}: is a link that leads nowhere; expected a file name") from None


def check_output(path: Path, suffixes: tuple[str, ...], option: str = "--output") -> None:
    """Find out before any work whether `path` can be written and ends in one of `suffixes`.

    Raises:
        OptionError: it ends otherwise; the message names `option`.
        OutputError: see `check_writable`.
    """
    check_writable(path)
    if path.suffix.lower() not in suffixes:
        raise OptionError(f"{option}: {path} ends in {path.suffix or 'no suffix'}; expected {' or '.join(suffixes)}")


def default_output(source: Path, suffix: str) -> Path:
    """``checkpoint.onnx`` in the current directory for ``.../checkpoint.pth.tar``; a folder's whole name before `suffix`."""
    if source.is_dir():
        return Path(f"{source.resolve().name or 'model'}{suffix}")
    return Path(Path(source.name.removesuffix(".tar")).with_suffix(suffix).name)


@contextmanager
def replacing(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Temporary paths for `targets`, renamed into place together when the body ends well and removed when it does not.

    Each temporary lies in its target's directory, in a directory of its own, under the target's name: a file that refers
    to another by name (ONNX external data) needs no change when both are moved. A target that the body does not write
    is removed: it belonged to what is replaced. A target that is a link stays one: what it leads to is replaced.

    Raises:
        OutputError: a target is no regular file, or the operating system refused to write.
    """
    for target in targets:
        check_writable(target)
    real = [_followed(target) for target in targets]
    try:
        with ExitStack() as stack:
            directories: dict[Path, Path] = {}
            for target in real:
                if target.parent not in directories:
                    directories[target.parent] = stack.enter_context(_directory_beside(target))
            temporary = tuple(directories[target.parent] / target.name for target in real)
            yield temporary
            for source in temporary:
                if source.exists():
                    _sync(source)
            with _uninterrupted():
                for source, target in zip(temporary, real, strict=True):
                    if source.exists():
                        source.replace(target)
                    else:
                        target.unlink(missing_ok=True)
    except OSError as error:
        if error.errno is None:
            raise
        raise OutputError(f"{targets[0]}: cannot be written: {error.strerror}") from error


# What a full disk answers, and what one answers that must not be written.
_FULL, _FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for files that are needed while the body runs, where TMPDIR says.

    Raises:
        OutputError: it cannot be made, is full, or must not be written.
    """
    hint = "let TMPDIR name a directory with room"
    try:
        made = tempfile.TemporaryDirectory(prefix="slimc-")
    except OSError as error:
        raise OutputError(f"no scratch space: {error.strerror or error}; {hint}") from error
    with made as directory:
        try:
            yield Path(directory)
        except OSError as error:
            ours = str(error.filename or "").startswith(directory)
            if error.errno not in _FULL and not (ours and error.errno in _FORBIDDEN):
                raise
            raise OutputError(f"scratch space in {directory}: {error.strerror}; {hint}") from error


@contextmanager
def _directory_beside(target: Path) -> Iterator[Path]:
    """A new directory beside `target` that is gone afterwards, whenever an interrupt comes."""
    with ExitStack() as cleanup:
        with _uninterrupted():
            directory = Path(tempfile.mkdtemp(dir=target.parent, prefix=".slimc-"))
            cleanup.callback(_remove, directory)
        yield directory


def _remove(directory: Path) -> None:
    try:
        with _uninterrupted():
            shutil.rmtree(directory, ignore_errors=True)
    finally:  # an interrupt that came before it could be held back
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM while the body runs: the files it touches belong together.

    The handlers are exchanged, for a blocked signal would reach them through any other thread of the process.
    """
    if threading.current_thread() is not threading.main_thread():  # where no handler ever runs
        yield
        return
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def _sync(path: Path) -> None:
    """Flush `path` to disk, so that a rename never exposes an empty file after a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
