"""SHA-256 of files, and which files a folder that holds a network consists of."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

_CHUNK = 1 << 22
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_DESCRIPTIONS = ("config.json", "preprocessor_config.json")


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


def files_of(path: Path) -> list[Path]:
    """The file at `path`; of a folder with a network in it, those that say what it is, and its weights."""
    if not path.is_dir():
        return [path]
    return [*(path / name for name in _DESCRIPTIONS if (path / name).is_file()), *_weights(path)]


def _weights(folder: Path) -> list[Path]:
    """Files of weights, of which safetensors are preferred; shards with what names them."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        with suppress(OSError, ValueError, AttributeError, KeyError):
            shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            return [index, *(folder / shard for shard in shards)]
    return []
