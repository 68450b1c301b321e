"""How to compile a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from slimc.compiler.adaptive import Adaptive
from slimc.emit.model import OPSETS
from slimc.emit.precision import TOLERANCE, Precision, find_precision
from slimc.errors import OptionError
from slimc.models.system import Variant
from slimc.targets.target import Target, find_target, for_half_precision, for_opset


@dataclass(frozen=True)
class CompileOptions:
    """How to compile a network.

    Attributes:
        variant: "slim"; or, as baselines, "masked" as the research code runs it, or "dense" with every mask at one.
        batch_size: images in a batch; shapes are static.
        opset: of ONNX; none takes the oldest that has the operators.
        target: what the model is for.
        precision: of the matrix products.
        adaptive: how to compile decisions that an image makes; none takes the fastest exact way.
        data: a folder of images, on which capacities are calibrated and which the model is compared on.
        outputs: their names (`slimc.ir.Output.name`), in order; none takes the network's own: logits where it has a head.
    """

    variant: Variant = "slim"
    batch_size: int = 1
    opset: int | None = None
    target: Target = field(default_factory=lambda: find_target("generic"))
    precision: Precision = "fp32"
    adaptive: Adaptive | None = None
    data: Path | None = None
    outputs: tuple[str, ...] | None = None

    @property
    def effective_target(self) -> Target:
        """The target as far as opset and precision allow."""
        if self.precision != "fp32":
            return for_half_precision(self.target)
        return self.target if self.opset is None else for_opset(self.target, self.opset)

    @property
    def tolerance(self) -> float:
        """The largest difference allowed, as a share of an output's spread."""
        return TOLERANCE[self.precision]


def check_measured(options: CompileOptions, said: str | None) -> None:
    """Refuse measured costs, which the option `said` asks for, where nothing is chosen by them; none: nothing asks.

    Raises:
        OptionError: opset or precision leave no attention operator that they were measured of.
    """
    if said is None or not options.target.tuned or options.effective_target.tuned:
        return
    cause = f"--opset {options.opset}" if options.precision == "fp32" else f"--precision {options.precision}"
    raise OptionError(f"{said}: {cause} leaves no attention operator, so every head is computed alone; leave it out")


def check_options(options: CompileOptions) -> None:
    """Find bad options before any work.

    Raises:
        OptionError: one of them cannot be used.
    """
    if options.variant not in get_args(Variant):
        raise OptionError(f"variant: {options.variant!r} is unknown; expected {', '.join(get_args(Variant))}")
    if options.batch_size < 1:
        raise OptionError(f"--batch-size: {options.batch_size} images make no batch; expected at least 1")
    if options.opset is not None and options.opset not in OPSETS:
        raise OptionError(f"--opset: {options.opset} cannot be emitted; expected {OPSETS[0]} to {OPSETS[-1]}")
    if options.adaptive is not None and options.variant != "slim":
        raise OptionError("--adaptive: compiles the slim network; leave out --dense and --masked")
    find_precision(options.precision)
