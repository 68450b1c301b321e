"""Reading checkpoints, which are hostile input: nothing in them is ever executed.

Pickles go through a machine that can only record (`slimc.files.checkpoint.unpickle`); a zip archive is checked against its
own checksums first, so that a damaged file is an error and not another network.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimc.errors import CheckpointError, MissingError, OptionError
from slimc.files.checkpoint.arguments import find_arguments
from slimc.files.checkpoint.containers import Container, identify
from slimc.files.checkpoint.recorded import ForeignError, RefusedError, UnreadableError, mapping
from slimc.files.checkpoint.safetensors_files import read_safetensors
from slimc.files.checkpoint.state import Candidate, Found, Recognise, find_module, find_networks, shown, tensors, under
from slimc.files.checkpoint.stored import Stored
from slimc.files.checkpoint.torch_files import read_legacy, read_zip
from slimc.files.digest import sha256

if TYPE_CHECKING:
    import torch

ACCEPTED = "a .pth, .pth.tar, .pt or .safetensors checkpoint"
_MOST_NAMES = 8
# Weights that share memory may take more than the file, but not many times as much.
_MOST_SHARED = 16


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A state dict and what the training script saved beside it.

    Attributes:
        path: the file.
        sha256: of the file.
        state: the weights, without what wrappers put before their names.
        args: the training arguments as plain values, empty where the file has none.
        averaged: the averaged (EMA) weights, where the file has any beside `state`.
        ema: whether `state` are such weights.
        state_key: where in the file `state` was, such as ``state_dict.model``; "." for the whole file.
        averaged_key: the same of `averaged`.
        args_from: where `args` were, such as ``hyper_parameters``; none where there were none.
        warnings: what was left out, for the user to know.
    """

    path: Path
    sha256: str
    state: Mapping[str, torch.Tensor]
    args: Mapping[str, Any]
    averaged: Mapping[str, torch.Tensor] | None = None
    ema: bool = False
    state_key: str = "."
    averaged_key: str | None = None
    args_from: str | None = None
    warnings: tuple[str, ...] = ()


def read_checkpoint(path: Path, recognises: Recognise, state_key: str | None = None) -> Checkpoint:
    """Read the checkpoint at `path`, a zip or legacy torch file, or safetensors.

    Args:
        path: the file; its content tells what it is.
        recognises: whether a state dict with such keys is of a system. What no system recognises is taken only where there
            is nothing else, for the caller to tell what it is.
        state_key: which weights to take, by the names that lead to them; none for those that a system recognises.

    Raises:
        CheckpointError: the file is missing, damaged or holds something else, or several networks.
        OptionError: there is nothing at `state_key`.
        MissingError: torch or safetensors is not on this machine.
    """
    digest = _digest(path)
    try:
        container = identify(path)
        _require("torch")
        content, metadata = _content(path, container)
        found = find_networks(content, recognises)
        chosen, averaged = _choose(path, content, found, state_key)
        most = _MOST_SHARED * path.stat().st_size
        args_from, args = find_arguments(_places(content, chosen.mapping, metadata))
        return Checkpoint(
            path,
            digest,
            tensors(chosen, most),
            args,
            averaged=None if averaged is None else tensors(averaged, most),
            ema=chosen.averaged,
            state_key=chosen.name,
            averaged_key=None if averaged is None else averaged.name,
            args_from=args_from,
            warnings=_warnings(path, chosen),
        )
    except ForeignError as error:
        advice = f"; {error.advice}" if error.advice else ""
        raise CheckpointError(f"{path}: not a checkpoint but {error}; expected {ACCEPTED}{advice}") from None
    except UnreadableError as error:
        raise CheckpointError(f"{path}: {error}") from None


def choose_weights(checkpoint: Checkpoint, ema: bool | None, *, averaged: bool) -> Checkpoint:
    """The checkpoint with the averaged weights as its state, or without them.

    Args:
        checkpoint: as it was read.
        ema: whether to take the averaged weights; None leaves it to `averaged`.
        averaged: whether the system's own evaluation takes them where they are.

    Raises:
        OptionError: `ema` is asked of a file that has no averaged weights, or its contrary of one that has no others.
    """
    if checkpoint.ema:
        if ema is False:
            raise OptionError(
                f"--no-ema: the weights that {checkpoint.path} has under {checkpoint.state_key} are averaged ones; "
                "drop it, or give --state-key with others"
            )
        return replace(checkpoint, averaged=None)
    if ema and checkpoint.averaged is None:
        raise OptionError(
            f"--ema: {checkpoint.path} has no averaged weights beside {checkpoint.state_key} (looked for names such as "
            "model_ema, state_dict_ema, ema)"
        )
    if checkpoint.averaged is not None and (averaged if ema is None else ema):
        key = checkpoint.averaged_key or checkpoint.state_key
        return replace(checkpoint, state=checkpoint.averaged, averaged=None, ema=True, state_key=key)
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


def _content(path: Path, container: Container) -> tuple[object, Mapping[str, Any]]:
    """What the file holds, and metadata that take the place of arguments."""
    if container == "safetensors":
        _require("safetensors")
        return read_safetensors(path)
    try:
        return (read_zip(path) if container == "zip" else read_legacy(path)), {}
    except (ForeignError, RefusedError):
        raise
    except UnreadableError as error:
        raise UnreadableError(f"not a readable torch checkpoint: {error}; expected {ACCEPTED}") from None


def _choose(path: Path, content: object, found: Found, key: str | None) -> tuple[Candidate, Candidate | None]:
    """The weights to take, and the averaged ones beside them."""
    if key is not None:
        named = under(found, key)
        if not named:
            raise OptionError(f"--state-key: {path} has no weights under {key}; it has {_names(_offered(found))}")
        plain = tuple(each for each in named if not each.averaged) or named
        return _only(path, plain), None
    plain = tuple(network for network in found.networks if not network.averaged)
    averaged = tuple(network for network in found.networks if network.averaged)
    if plain:
        return _only(path, plain), averaged[0] if averaged else None
    if averaged:
        return _only(path, averaged), None
    if not found.mappings:
        raise UnreadableError(f"{_no_weights(content)}; expected {ACCEPTED}")
    return max(found.mappings, key=lambda each: len(each.weights)), None


def _only(path: Path, networks: tuple[Candidate, ...]) -> Candidate:
    if len(networks) > 1:
        first = shown(networks[0].name)
        raise CheckpointError(
            f"{path}: has the weights of several networks, under {_names(networks)}; expected one: choose with "
            f"--state-key {first}, or another of these"
        )
    return networks[0]


def _offered(found: Found) -> tuple[Candidate, ...]:
    """What can be chosen: networks, then other mappings with tensors."""
    known = {network.name for network in found.networks}
    return (*found.networks, *(each for each in found.mappings if each.name not in known))


def _names(candidates: tuple[Candidate, ...]) -> str:
    names = [each.name for each in candidates]
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return (", ".join(names[:_MOST_NAMES]) or "none") + more


def _no_weights(content: object) -> str:
    """What a file holds that has no tensors with names."""
    module = find_module(content)
    if module is not None:
        return (
            f"holds a pickled module ({shown(module.name)}), whose code slimc does not run; save its weights instead: "
            "torch.save(model.state_dict(), 'weights.pth')"
        )
    entries = mapping(content)
    if entries is None and not (isinstance(content, dict) or content is None):
        kind = "Tensor" if isinstance(content, Stored) else type(content).__name__
        return f"holds a {shown(getattr(content, 'name', kind))}, not a dict with weights"
    return f"no state dict (found {', '.join(map(shown, list(entries or ())[:6])) or 'nothing'})"


def _places(content: object, name: str, metadata: Mapping[str, Any]) -> list[Mapping[Any, Any]]:
    """Where training arguments may be: the top of the file, and the mappings on the way to the weights."""
    places: list[Mapping[Any, Any]] = [{"args": metadata}] if metadata else []
    entries = mapping(content)
    rest = name
    while entries is not None and len(places) < 16:
        places.append(entries)
        # Names may have dots themselves, and lists are passed through.
        step = next((key for key in entries if rest and f"{rest}.".startswith(f"{shown(key)}.")), None)
        if step is None:
            break
        rest = rest[len(shown(step)) + 1 :]
        entries = mapping(entries[step])
    return places


def _warnings(path: Path, chosen: Candidate) -> tuple[str, ...]:
    if not chosen.left_out:
        return ()
    first = ", ".join(chosen.left_out[:3]) + (", ..." if len(chosen.left_out) > 3 else "")
    return (
        f"{path}: took the weights under {chosen.name}; left out {len(chosen.left_out)} beside them, which belong to "
        f"something else ({first})",
    )
