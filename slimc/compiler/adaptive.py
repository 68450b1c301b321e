"""The ways to compile a network that decides for each image what runs, and what a calibration set says about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slimc import ir
from slimc.compiler.limits import Limits, limits_of
from slimc.errors import OptionError
from slimc.evaluate.progress import Advance
from slimc.files.images import load_images
from slimc.ir.gate_usage import Usage, join
from slimc.models.system import Network
from slimc.passes.limit_tokens import LimitTokens
from slimc.passes.remove_settled_gates import RemoveSettledGates
from slimc.passes.rewrite import Pass
from slimc.targets.target import Target

_CHUNK = 8
ADAPTIVE = ("masked", "conditional", "capacity", "conditional+capacity")


@dataclass(frozen=True)
class Adaptive:
    """How to compile gates: `conditional` branches are not computed when they are off (batch 1), else multiplied by zero;
    with `capacity` the tokens and gates are limited to what a calibration set needs, tokens to a quantile of it.
    """

    conditional: bool = False
    capacity: bool = False
    quantile: float = 1.0

    @property
    def name(self) -> str:
        """One of `ADAPTIVE`."""
        parts = [name for name in ("conditional", "capacity") if getattr(self, name)]
        return "+".join(parts) or "masked"


def find_adaptive(text: str, quantile: float | None = None) -> Adaptive:
    """What ``--adaptive`` and ``--capacity-quantile`` say.

    Raises:
        OptionError: they say nothing that can be done.
    """
    parts = text.split("+")
    if "+".join(sorted(parts, reverse=True)) not in ADAPTIVE:
        raise OptionError(f"--adaptive: {text!r} is unknown; expected {', '.join(ADAPTIVE)}")
    if quantile is not None and "capacity" not in parts:
        raise OptionError("--capacity-quantile: needs --adaptive capacity")
    return Adaptive("conditional" in parts, "capacity" in parts, 1.0 if quantile is None else quantile)


def choose_adaptive(
    adaptive: Adaptive | None, network: Network, target: Target, batch_size: int, data: Path | None
) -> Adaptive | None:
    """The way to compile `network`, none for a network that decides nothing: as asked, or the exact one that suits.

    That is `conditional` at batch 1, except for GPUs, where attention inside an ``If`` is not fused.

    Raises:
        OptionError: the way cannot be gone with this network, batch size or without images.
    """
    if not network.system.decides:
        if adaptive is not None:
            raise OptionError(f"--adaptive: {network.system.title} checkpoints decide nothing for each image")
        return None
    if adaptive is None:
        adaptive = Adaptive(conditional=batch_size == 1 and target.name in ("generic", "cpu"))
    if adaptive.conditional and batch_size != 1:
        raise OptionError(f"--adaptive conditional: needs --batch-size 1, not {batch_size}: images decide differently")
    if adaptive.capacity and network.limits is not None:
        raise OptionError(f"--adaptive capacity: {network.path} has its capacities; expected masked or conditional")
    if adaptive.capacity and data is None:
        raise OptionError("--adaptive capacity: needs calibration images; give their folder with --data DIR")
    return adaptive


def observe(network: Network, files: list[Path], advance: Advance) -> Usage:
    """What the PyTorch network decides on the images in `files`."""
    pytorch = network.pytorch("masked")
    import torch

    parts = []
    for start in range(0, len(files), _CHUNK):
        images = load_images(files[start : start + _CHUNK], network.masked.image, network.preprocessing)
        with torch.inference_mode():
            usage = network.trace(pytorch, torch.from_numpy(images)).usage
        assert usage is not None
        parts.append(usage)
        advance(min(start + _CHUNK, len(files)), len(files))
    return join(parts)


def calibrate(network: Network, files: list[Path], quantile: float, advance: Advance) -> Limits:
    """The limits that the images in `files` suggest."""
    return limits_of(observe(network, files, advance), network.masked, quantile)


def limiting_passes(limits: Limits) -> tuple[Pass, ...]:
    """The passes that give a model its limits: they come before all others, which then see less."""
    return RemoveSettledGates(limits.settled), LimitTokens(limits.capacities)


def limited(model: ir.Model, limits: Limits) -> ir.Model:
    """`model` with its limits, and nothing else changed."""
    for step in limiting_passes(limits):
        model = step(model)
    return model
