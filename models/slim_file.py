"""Slim files (`slimc.files.slim`) as networks: what they hold is slim already, and all that runs it is this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slimc import ir
from slimc.errors import CheckpointError, InternalError, MissingError, OptionError
from slimc.files.slim import DamagedError, SlimFile, holds, read_slim, write_slim
from slimc.files.structure import kept_channels
from slimc.models.options import flag, said
from slimc.models.preprocessing import NAMES, override
from slimc.models.system import Network, System, Trace, run_plainly
from slimc.models.systems import find_system

if TYPE_CHECKING:
    import torch


def load(path: Path, options: Mapping[str, Any], ema: bool | None) -> Network:
    """The network in the slim file at `path`; of the `options`, those about images apply.

    Raises:
        CheckpointError: the file is damaged, or of a system that this slimc does not know.
        OptionError: an option says how to understand a checkpoint.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for option in said({name: value for name, value in given.items() if name not in NAMES}, ema):
        raise OptionError(f"{option}: {path} is slim already; expected the options that it was exported with, or none")
    content = read_slim(path)
    network = _network(path, content, _system(path, content))
    own, said_here = content.preprocessing, override(content.preprocessing, given)
    changed = [name for name in NAMES if getattr(said_here, name) != getattr(own, name)]
    warnings = tuple(f"{path}: {flag(name)} overrides what the file says, {getattr(own, name)}" for name in changed)
    return replace(network, preprocessing=said_here, warnings=warnings)


def save(network: Network, path: Path) -> None:
    """Write the masked network of `network`, in which passes have left no masks, to the slim file `path`.

    Raises:
        CheckpointError: a number in it is NaN or infinite.
        OSError: the file cannot be written.
    """
    try:
        write_slim(path, _content(network))
    except DamagedError as error:
        raise CheckpointError(f"{network.path}: cannot be kept: {error}") from None


def read_back(network: Network, path: Path) -> Network:
    """The network of the slim file at `path`, which `save` wrote of `network`; it shares the numbers of `network`.

    Raises:
        InternalError: the file holds something else.
        OSError: it cannot be read.
    """
    try:
        same = holds(path, network.masked)
    except DamagedError as error:
        raise InternalError(f"{path}: {error}") from error
    if not same:
        raise InternalError(f"{path}: does not hold what was written")
    return _network(path, _content(network), network.system)


def _content(network: Network) -> SlimFile:
    """What a slim file of `network` holds."""
    before = network.origin
    return SlimFile(
        model=network.masked,
        system=network.system.name,
        source_sha256=network.sha256,
        preprocessing=network.preprocessing,
        settings=network.settings,
        details=network.details,
        dense=None if before is None else network.dense,
        heads=() if before is None else [kept_channels(block) for block in before.blocks[: len(network.masked.blocks)]],
        limits=network.limits,
    )


def _system(path: Path, content: SlimFile) -> System:
    system = find_system(content.system)
    if system is None:
        raise CheckpointError(f"{path}: is of {content.system!a}, which this slimc does not know; get a newer one")
    try:
        system.facts(content.settings, content.details)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise CheckpointError(
            f"{path}: not a slim file that can be used: its settings are not {system.title}'s"
        ) from None
    return system


def _network(path: Path, content: SlimFile, system: System) -> Network:
    model = content.model
    chooses = system.decides or any(block.select is not None for block in model.blocks)
    return Network(
        system=system,
        path=path,
        sha256=content.source_sha256,
        masked=model,
        dense=content.dense or model,
        pytorch=lambda _: _module(path, model, decides=system.decides),
        settings=content.settings,
        preprocessing=content.preprocessing,
        details=content.details,
        trace=_trace if chooses else run_plainly,
        read=None if chooses else _read,
        origin=None if content.dense is None else _before(model, content),
        limits=content.limits,
    )


def _before(model: ir.Model, content: SlimFile) -> ir.Model:
    """`model` with heads of the widths that the network before kept, which have no numbers."""
    blocks = tuple(
        replace(block, attention=_heads_of(widths)) for block, widths in zip(model.blocks, content.heads, strict=True)
    )
    return replace(model, blocks=blocks)


def _heads_of(widths: Sequence[int]) -> ir.Attention | None:
    """An attention with heads of these `widths`, none where there are none."""

    def zeros(*shape: int) -> ir.FloatArray:
        return np.broadcast_to(np.float32(0), shape)

    if not widths:
        return None
    rows = [ir.Linear(zeros(width, 1)) for width in widths]
    heads = tuple(ir.Head(each, each, each, each.weight.T) for each in rows)
    return ir.Attention(ir.RmsNorm(zeros(1), 0.0), heads, None, 1.0)


def _module(path: Path, model: ir.Model, *, decides: bool) -> torch.nn.Module:
    try:
        from slimc.models.slim_reference import SlimReference
    except ImportError as error:
        raise MissingError(
            f"{path}: running its network needs torch, which cannot be imported ({error}); pip install 'slimc[compile]'"
        ) from None
    return SlimReference(model, decides=decides).eval()


def _trace(network: torch.nn.Module, images: torch.Tensor) -> Trace:
    from slimc.models.slim_reference import trace_slim

    return trace_slim(network, images)


def _read(network: torch.nn.Module, images: torch.Tensor, names: tuple[str, ...]) -> Mapping[str, torch.Tensor]:
    from slimc.models.slim_reference import read_slim_outputs

    return read_slim_outputs(network, images, names)
