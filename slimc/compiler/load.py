"""From a checkpoint file, a folder or a module to a network that is understood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimc.errors import BudgetError, CheckpointError, OptionError
from slimc.files.checkpoint import Checkpoint, choose_weights, read_checkpoint
from slimc.files.slim import is_slim
from slimc.models.options import WHAT_STAYS, ModelOptions, said
from slimc.models.system import Network, System
from slimc.models.systems import PLAIN, recognise, recognises

if TYPE_CHECKING:
    import torch


def load_network(
    path: Path, options: Mapping[str, Any] | None = None, *, ema: bool | None = None, dense: bool = False
) -> Network:
    """Read the checkpoint or folder at `path`, recognise its system and understand it.

    Args:
        path: a zip or legacy torch file, or safetensors; a slim file; or a folder with config.json and weights.
        options: what the system's options say (`slimc.models.options`), by name; those that are None were not given.
        ema: take the averaged weights; None leaves it to the system: AdaViT's released evaluation takes them where they
            are, the others never do.
        dense: the network that keeps everything is wanted: a checkpoint need not say what to keep.

    Raises:
        CheckpointError: the file is missing, damaged, holds something else or several networks, or is of no known system.
        BudgetError, OptionError: an option is missing, cannot be used, or is not one of the system.
        MissingError: torch, safetensors or timm is not on this machine.
    """
    given = dict(options or {})
    if path.is_dir():
        return _load_folder(path, given, ema)
    _refuse_hub_id(path)
    if is_slim(path):
        return _load_slim(path, given, ema)
    checkpoint = read_checkpoint(path, recognises, given.get("state_key"))
    system = recognise(checkpoint)
    checkpoint = choose_weights(checkpoint, ema, averaged=system.averaged)
    network = _load_dense(system, checkpoint, given) if dense else system.load(checkpoint, system.read_options(given))
    return replace(network, warnings=(*checkpoint.warnings, *network.warnings))


def _load_dense(system: System, checkpoint: Checkpoint, given: Mapping[str, Any]) -> Network:
    """The network, of which everything is kept where neither the checkpoint nor an option says what."""
    try:
        return system.load(checkpoint, system.read_options(given))
    except BudgetError:
        if any(value is not None for name, value in given.items() if name in WHAT_STAYS):
            raise
        return system.load(checkpoint, system.read_options({**given, **system.everything}))


def load_module(module: torch.nn.Module, options: Mapping[str, Any] | None = None) -> Network:
    """Understand a network of timm's in memory.

    Raises:
        CheckpointError: part of it computes what slimc does not know.
        OptionError: an option is not one of plain vision transformers, or says what the module says itself.
    """
    from slimc.models.timm_network import build, from_module

    read = PLAIN.read_options(options or {})
    _refuse(
        read, ("arch", "model_kwargs", "num_classes", "img_size", "num_heads", "state_key"), "the module says itself"
    )
    return build(from_module(module), read, PLAIN)


def _load_slim(path: Path, given: Mapping[str, Any], ema: bool | None) -> Network:
    from slimc.compiler.limits import Limits
    from slimc.models import slim_file

    network = slim_file.load(path, given, ema)
    try:
        if network.limits is not None:
            Limits.from_json(network.limits)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: not a slim file that can be used: its limits cannot be read") from None
    return network


def _load_folder(folder: Path, given: Mapping[str, Any], ema: bool | None) -> Network:
    from slimc.models.timm_files import from_folder
    from slimc.models.timm_network import build

    if ema is not None:
        raise OptionError(f"{said({}, ema)[0]}: {folder} has one set of weights; leave it out")
    read = PLAIN.read_options(given)
    _refuse(read, ("state_key", "num_heads"), f"{folder} says itself")
    return build(from_folder(folder, read), read, PLAIN)


def _refuse(options: ModelOptions, names: tuple[str, ...], reason: str) -> None:
    for option in said({name: getattr(options, name) for name in names}, None):
        raise OptionError(f"{option}: {reason} what it is; leave it out")


def _refuse_hub_id(path: Path) -> None:
    """Refuse the name of a network on a hub: nothing is downloaded.

    Raises:
        CheckpointError: there is no such file, and it looks like one.
    """
    text = path.as_posix()
    if not path.exists() and not path.suffix and text.count("/") == 1 and not text.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{path}: no such file or folder; slimc downloads nothing: give a folder with config.json and model.safetensors "
            "(huggingface-cli download, or timm's and transformers' save functions, make one)"
        )


def refuse_loading(network: Network, options: Mapping[str, Any], ema: bool | None) -> None:
    """Refuse what would say how to load a checkpoint, where `network` is loaded already.

    Raises:
        OptionError: anything was said.
    """
    if options or ema is not None:
        raise OptionError(
            f"{', '.join(options) or 'ema'}: say how to load a checkpoint; {network.path} is loaded already"
        )
