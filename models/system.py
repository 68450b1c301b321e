"""What a system of searched networks is to slimc, and what slimc makes of a checkpoint of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from slimc.errors import OptionError
from slimc.models.options import ModelOptions, flag

if TYPE_CHECKING:
    import torch

    from slimc import ir
    from slimc.files.checkpoint import Checkpoint
    from slimc.ir.gate_usage import Usage
    from slimc.ir.preprocessing import Preprocessing

Variant = Literal["slim", "masked", "dense"]
# What says which of timm's networks the weights are of.
_OF_BACKBONES = {"arch", "model_kwargs", "num_classes"}


class System(ABC):
    """One system: its name, how its checkpoints are recognised and loaded, and its options.

    Adding a system means writing one such class and naming it in `slimc.models.systems.SYSTEMS`. The class imports its
    front end where `load` needs it: what is not used is not imported.
    """

    name: ClassVar[str]
    """How files of slimc's call it, such as ``vit_slim``."""
    title: ClassVar[str]
    """How people call it, such as ViT-Slim."""
    looks: ClassVar[str]
    """Keys by which a person recognises its checkpoints."""
    options: ClassVar[type[ModelOptions]] = ModelOptions
    """What a user may say about its checkpoints."""
    averaged: ClassVar[bool] = False
    """Whether its own evaluation takes the averaged (EMA) weights where a file has them."""
    everything: ClassVar[Mapping[str, float]] = MappingProxyType({})
    """Options at which everything stays, where a checkpoint need not say what."""
    backbones: ClassVar[bool] = False
    """Whether its networks may be any of timm's, which `ModelOptions.arch` names."""
    decides: ClassVar[bool] = False
    """Whether its networks decide for each image what runs, so that what an image costs depends on it."""

    @abstractmethod
    def recognises(self, keys: Collection[str]) -> bool:
        """Whether a state dict with these `keys` is of this system."""

    @abstractmethod
    def load(self, checkpoint: Checkpoint, options: Any) -> Network:  # noqa: ANN401 - an instance of its `options`
        """Understand a checkpoint; `options` are an instance of the system's `options`.

        Raises:
            CheckpointError, BudgetError, OptionError: the checkpoint, a budget or an option cannot be used.
        """

    def facts(self, settings: Mapping[str, Any], details: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:  # noqa: ARG002
        """What a person wants to know of a network's `settings` and `details`, as names and texts."""
        return tuple((name.replace("_", " "), str(value)) for name, value in settings.items())

    def read_options(self, given: Mapping[str, Any]) -> ModelOptions:
        """The options `given` by name, of which those that are None were not given.

        Raises:
            OptionError: one of them is none of this system's.
        """
        known = {f.name for f in fields(self.options)} - (set() if self.backbones else _OF_BACKBONES)
        values = {name: value for name, value in given.items() if value is not None}
        for name in values:
            if name not in known:
                raise OptionError(
                    f"{flag(name)}: {self.title} checkpoints have no such setting; "
                    f"theirs are {', '.join(flag(each) for each in sorted(known))}"
                )
        return self.options(**values)


@dataclass(frozen=True, eq=False)
class Trace:
    """What a PyTorch network makes of a batch of images, and what it chose on the way.

    Attributes:
        logits: [B, classes].
        kept: the patches [B, K] that each selection keeps, by grid position, best first; empty where nothing is selected.
        margins: [B], how surely the selections keep what they keep; none where nothing is selected.
        usage: what ran for which image; none where nothing is decided.
    """

    logits: torch.Tensor
    kept: tuple[torch.Tensor, ...] = ()
    margins: torch.Tensor | None = None
    usage: Usage | None = None


def run_plainly(network: torch.nn.Module, images: torch.Tensor) -> Trace:
    """The trace of a network that chooses nothing."""
    return Trace(network(images))


@dataclass(frozen=True, eq=False)
class Network:
    """A checkpoint, understood: the network in IR as the research code runs it, and with every mask at one.

    Attributes:
        system: whose network it is.
        path: the checkpoint.
        sha256: of the checkpoint.
        masked: the network as the research code runs it.
        dense: the same with every mask or gate at one.
        pytorch: builds the PyTorch network of a variant, "masked" or "dense", in eval mode, float32: what emitted models
            are verified against.
        settings: the budgets, keep rates or flags in force, for reports.
        details: further facts, for reports.
        preprocessing: how images become its input.
        trace: runs what `pytorch` built for "masked" on images [B, 3, height, width], and tells what it chose.
        read: runs what `pytorch` built on such images, and gives the outputs of these names (`slimc.ir.Output.name`); none
            where there are logits only.
        warnings: what a user should know about how the checkpoint was understood.
        origin: what reports tell of the network before, where `masked` is slim already; then `dense` and this have shapes
            and no numbers.
        limits: what the gates of `masked` were limited to already (`slimc.compiler.limits`).
    """

    system: System
    path: Path
    sha256: str
    masked: ir.Model
    dense: ir.Model
    pytorch: Callable[[Variant], torch.nn.Module]
    settings: Mapping[str, Any]
    preprocessing: Preprocessing
    details: Mapping[str, Any] = field(default_factory=dict)
    trace: Callable[[torch.nn.Module, torch.Tensor], Trace] = run_plainly
    read: Callable[[torch.nn.Module, torch.Tensor, tuple[str, ...]], Mapping[str, torch.Tensor]] | None = None
    warnings: tuple[str, ...] = ()
    origin: ir.Model | None = None
    limits: Mapping[str, Any] | None = None

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What it can be compiled to."""
        return ("dense", "masked", "slim") if self.origin is None else ("slim",)

    @property
    def selects(self) -> bool:
        """Whether it keeps, image by image, a fixed number of patches."""
        return any(block.select is not None for block in self.masked.blocks)
