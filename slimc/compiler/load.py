"""From a checkpoint file to a network that is understood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from slimc.errors import OptionError
from slimc.files.checkpoint import choose_weights, read_checkpoint
from slimc.models.system import Network
from slimc.models.systems import recognise, recognises


def load_network(path: Path, options: Mapping[str, Any] | None = None, *, ema: bool | None = None) -> Network:
    """Read the checkpoint at `path`, recognise its system and understand it.

    Args:
        path: a zip or legacy torch file, or safetensors.
        options: what the system's options say (`slimc.models.options`), by name; those that are None were not given.
        ema: take the averaged weights; None leaves it to the system: AdaViT's released evaluation takes them where they
            are, the others never do.

    Raises:
        CheckpointError: the file is missing, damaged, holds something else or several networks, or is of no known system.
        BudgetError, OptionError: an option is missing, cannot be used, or is not one of the system.
        MissingError: torch or safetensors is not on this machine.
    """
    given = dict(options or {})
    checkpoint = read_checkpoint(path, recognises, given.get("state_key"))
    system = recognise(checkpoint)
    checkpoint = choose_weights(checkpoint, ema, averaged=system.averaged)
    network = system.load(checkpoint, system.read_options(given))
    return replace(network, warnings=(*checkpoint.warnings, *network.warnings))


def refuse_loading(network: Network, options: Mapping[str, Any], ema: bool | None) -> None:
    """Refuse what would say how to load a checkpoint, where `network` is loaded already.

    Raises:
        OptionError: anything was said.
    """
    if options or ema is not None:
        raise OptionError(
            f"{', '.join(options) or 'ema'}: say how to load a checkpoint; {network.path} is loaded already"
        )
