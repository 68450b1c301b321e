"""The files of a folder that holds a network: its JSON, its weights, and the module that they fill."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from slimc.errors import CheckpointError, MissingError
from slimc.files.checkpoint import read_checkpoint

CONFIG = "config.json"
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_MOST_TEXT = 1 << 26
_MOST_SHARDS = 1000


@dataclass(frozen=True, eq=False)
class FolderModule:
    """A network of timm's that a folder holds, and how its images are prepared.

    Attributes:
        module: in eval mode, float32.
        name: timm's architecture, or Hugging Face's model type.
        args: how images become its input, by the names of timm's `pretrained_cfg`: mean, std, crop_pct, interpolation,
            input_size. What the folder does not say is not there.
        sha256: of the weights; of the digests of all their files where there are several.
        warnings: what a user should know about how the folder was understood.
        concatenated_head: weight [classes, 2 C] and bias of a classifier that reads the class token beside the mean of
            the patches, which timm has no module for: `module` is without a head then.
    """

    module: torch.nn.Module
    name: str
    args: Mapping[str, Any]
    sha256: str
    warnings: tuple[str, ...] = ()
    concatenated_head: tuple[torch.Tensor, torch.Tensor | None] | None = None


@dataclass(frozen=True, eq=False)
class FolderWeights:
    """The state dict of a folder.

    Attributes:
        path: the file that it is in, or the index of its shards.
        state: the weights by name.
        sha256: of the file, or of the shards' digests.
        warnings: what was left out of the files.
    """

    path: Path
    state: Mapping[str, torch.Tensor]
    sha256: str
    warnings: tuple[str, ...] = field(default=())


def require_timm() -> None:
    """Check that timm can be imported.

    Raises:
        MissingError: it cannot.
    """
    try:
        importlib.import_module("timm")
    except ImportError as error:
        raise MissingError(
            f"networks of timm's and of Hugging Face's need timm, which cannot be imported ({error}); "
            "pip install 'slimc[timm]'"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in the JSON file `path`.

    Raises:
        CheckpointError: the file is missing, no JSON, or of something else.
    """
    try:
        if path.stat().st_size > _MOST_TEXT:
            raise CheckpointError(f"{path}: is too large for a configuration; expected a JSON object")
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:160]
        raise CheckpointError(f"{path}: is no JSON: {reason}; expected a JSON object") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a {type(values).__name__}; expected a JSON object")
    return values


def read_weights(folder: Path) -> FolderWeights:
    """The weights in `folder`, in one file or in shards; safetensors are preferred.

    Raises:
        CheckpointError: there are none, or they are damaged.
        MissingError: torch or safetensors is not on this machine.
    """
    for name in _SINGLE:
        if (folder / name).exists():
            file = read_checkpoint(folder / name, _nothing)
            return FolderWeights(file.path, file.state, file.sha256, file.warnings)
        index = folder / f"{name}.index.json"
        if index.exists():
            return _sharded(index)
    raise CheckpointError(
        f"{folder}: has no weights; expected {', '.join(_SINGLE)}, or an index of shards such as {_SINGLE[0]}.index.json"
    )


def _nothing(keys: Collection[str]) -> bool:  # noqa: ARG001 - the whole file is the network, whatever its names
    return False


def _sharded(index: Path) -> FolderWeights:
    """Weights in several files, which `index` names for each of them."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index}: has no weight_map; expected the name of a file for every weight")
    shards = sorted(set(places.values()))
    outside = next((name for name in shards if Path(name).name != name), None)
    if outside is not None or len(shards) > _MOST_SHARDS:
        wrong = f"names the file {outside!r}" if outside is not None else f"names {len(shards)} files"
        raise CheckpointError(f"{index}: {wrong}; expected names of up to {_MOST_SHARDS} files in the same folder")
    files = {name: read_checkpoint(index.parent / name, _nothing) for name in shards}
    state: dict[str, torch.Tensor] = {}
    for key, shard in places.items():
        if key not in files[shard].state:
            raise CheckpointError(f"{index}: says that {shard} has {key}, but it has not")
        state[key] = files[shard].state[key]
    for shard, file in files.items():
        unnamed = next((key for key in file.state if key not in state), None)
        if unnamed is not None:
            raise CheckpointError(f"{index}: does not name {unnamed}, which {shard} has")
    digests = "".join(f"{file.sha256}  {shard}\n" for shard, file in files.items())
    warnings = tuple(warning for file in files.values() for warning in file.warnings)
    return FolderWeights(index, state, hashlib.sha256(digests.encode()).hexdigest(), warnings)


def fill(module: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Put all of `state`, which is in the file `path`, into `module`, which needs all of it.

    Raises:
        CheckpointError: a weight is missing, unexpected, of another shape, or not of finite floating-point numbers.
    """
    own = module.state_dict()
    for names, others, wrong in ((own, state, "has no"), (state, own, "has an unexpected")):
        missing = [name for name in names if name not in others]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise CheckpointError(f"{path}: {wrong} {missing[0]}{more}: not the weights of this network")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{path}: {name} has the shape {list(tensor.shape)}, expected {list(own[name].shape)}"
            )
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise CheckpointError(f"{path}: {name} has the type {tensor.dtype}, expected floating-point weights")
        if not _finite(tensor):
            raise CheckpointError(f"{path}: {name} has NaN or Inf among its weights")
    module.load_state_dict(dict(state), strict=True)


def _finite(tensor: torch.Tensor) -> bool:
    """Whether all of `tensor` are finite numbers. NumPy finds out several times faster than torch, where it has the type."""
    if tensor.dtype in (torch.float16, torch.float32, torch.float64):
        return bool(np.isfinite(tensor.detach().cpu().numpy()).all())
    return bool(torch.isfinite(tensor).all())


class NotInitialised(TorchFunctionMode):
    """Within it modules are made without initial weights, which takes longer than all the rest: `fill` gives them others.

    Whatever changes a parameter in place is left out; buffers are computed as always.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """What `func` gives, or the parameter itself."""
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], torch.nn.Parameter):
            return args[0]
        return func(*args, **(kwargs or {}))
