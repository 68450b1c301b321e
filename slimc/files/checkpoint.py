"""Reading checkpoints, which are hostile input: nothing in them is ever executed.

Pickled files are read with ``torch.load(weights_only=True)`` and the allow-list below; a zip archive is checked against
its own checksums first, so that a damaged file is an error and not another network.
"""

from __future__ import annotations

import argparse
import importlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimc.errors import CheckpointError, MissingError, OptionError
from slimc.files.digest import sha256

if TYPE_CHECKING:
    import torch

ACCEPTED = "a .pth, .pth.tar, .pt or .safetensors checkpoint"
_STATE_KEYS = ("model", "state_dict")
_CONFIG_KEYS = ("pretrained_cfg", "default_cfg")
_EMA_KEYS = ("model_ema", "state_dict_ema", "ema", "ema_state_dict")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A state dict and what the training script saved beside it.

    `state` has no ``module.`` prefix; `args` are the training script's arguments, empty where the file has none. `averaged`
    are the averaged (EMA) weights, where the file has any beside `state`; `ema` says that `state` are such weights.
    """

    path: Path
    sha256: str
    state: Mapping[str, torch.Tensor]
    args: Mapping[str, Any]
    averaged: Mapping[str, torch.Tensor] | None = None
    ema: bool = False


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint at `path`, a zip or legacy torch file, or safetensors.

    Raises:
        CheckpointError: the file is missing, damaged or holds something else.
        MissingError: torch or safetensors is not on this machine.
    """
    digest = _digest(path)
    _require("torch")
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    found = next((content[key] for key in _EMA_KEYS if isinstance(content.get(key), Mapping)), None)
    averaged = None if found is None else _tensors(path, found)
    return Checkpoint(path, digest, _state_dict(path, content), _arguments(content), averaged)


def choose_weights(checkpoint: Checkpoint, ema: bool | None, *, averaged: bool) -> Checkpoint:
    """The checkpoint with the averaged weights as its state, or without them.

    Args:
        checkpoint: as it was read.
        ema: whether to take the averaged weights; None leaves it to `averaged`.
        averaged: whether the system's own evaluation takes them where they are.

    Raises:
        OptionError: `ema` is asked of a file that has no averaged weights.
    """
    if ema and checkpoint.averaged is None:
        raise OptionError(f"--ema: {checkpoint.path} has no averaged weights (looked for {', '.join(_EMA_KEYS)})")
    if checkpoint.averaged is not None and (averaged if ema is None else ema):
        return replace(checkpoint, state=checkpoint.averaged, averaged=None, ema=True)
    return replace(checkpoint, averaged=None)


def _require(package: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise MissingError(
            f"reading checkpoints needs {package}, which cannot be imported ({error}); pip install 'slimc[compile]'"
        ) from None


def _digest(path: Path) -> str:
    """SHA-256 of the file, which also finds out whether there is one."""
    if path.is_dir():
        raise CheckpointError(f"{path}: is a directory; expected {ACCEPTED}")
    try:
        digest = sha256(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty; expected {ACCEPTED}")
    return digest


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _read_safetensors(path: Path) -> dict[str, Any]:
    _require("safetensors")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {_first_line(error)}") from None
    return {"model": state, "args": {key: _parsed(value) for key, value in metadata.items()}}


def _parsed(value: str) -> object:
    """A safetensors metadata value, which is text: numbers and booleans as such."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _read_torch(path: Path) -> dict[str, Any]:
    import torch

    is_zip = _check_archive(path)
    try:
        with torch.serialization.safe_globals(_allowed_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:
        raise CheckpointError(f"{path}: {_load_failure(error)}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dict; expected {ACCEPTED}")
    return dict(content)


def _allowed_globals() -> list[Any]:
    """What a training script saves beside tensors: its arguments, and NumPy scalars such as the best accuracy."""
    import numpy as np
    from numpy.dtypes import BoolDType, Float32DType, Float64DType, Int32DType, Int64DType

    scalar: Any = np.float64(0).__reduce__()[0]
    return [
        argparse.Namespace,
        np.dtype,
        *(Float32DType, Float64DType, Int32DType, Int64DType, BoolDType),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]


def _check_archive(path: Path) -> bool:
    """Whether `path` is a zip archive, whose every member must then match its checksum."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise CheckpointError(f"{path}: a compressed zip archive, which torch.save does not write")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: a truncated or damaged zip archive: {_first_line(error)}") from None
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged: {damaged!r} does not match its checksum")
    return True


def _load_failure(error: Exception) -> str:
    text = str(error)
    marker = "GLOBAL "
    if "weights_only" in text.lower() and marker in text:
        name = text.split(marker, 1)[1].split(" ", 1)[0]
        return f"refused: the pickle asks for {name}, which is not on the allow-list of plain data"
    # torch's own words for a file that is no pickle advise to load it unsafely.
    reason = "no zip archive and no pickle of tensors" if "weights only" in text.lower() else _first_line(error)
    return f"not a readable torch checkpoint ({reason}); expected {ACCEPTED}"


def _state_dict(path: Path, content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    for key in _STATE_KEYS:
        if isinstance(content.get(key), Mapping):
            return _tensors(path, content[key])
    return _tensors(path, content)


def _tensors(path: Path, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a state dict, without the ``module.`` that DistributedDataParallel puts before every key."""
    import torch

    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if not tensors:
        found = ", ".join(str(key) for key in list(state)[:6]) or "nothing"
        raise CheckpointError(f"{path}: no state dict (found {found}); expected {ACCEPTED}")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    """The training arguments, and among them timm's configuration, where the file has one beside them."""
    args = content.get("args")
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    found = {key: value for key, value in args.items() if isinstance(key, str)} if isinstance(args, Mapping) else {}
    configs = {key: content[key] for key in _CONFIG_KEYS if isinstance(content.get(key), Mapping)}
    return {**configs, **found}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
