"""SHA-256 of files."""

import hashlib
from pathlib import Path

_CHUNK = 1 << 22


def sha256(path: Path) -> str:
    """The SHA-256 of the file at `path`, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
