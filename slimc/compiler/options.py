"""How to compile a checkpoint and check what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from slimc.compiler.adaptive import Adaptive
from slimc.emit.model import OPSETS
from slimc.emit.precision import TOLERANCE, Precision
from slimc.errors import OptionError
from slimc.models.options import Variant
from slimc.targets.target import Target, for_half_precision, for_opset


@dataclass(frozen=True)
class ExportOptions:
    """How to compile and check. `data` is a folder of further images.

    `adaptive` is how to compile decisions that an image makes; none leaves it to the network.
    """

    variant: Variant = "slim"
    batch_size: int = 1
    opset: int | None = None
    target: Target = field(default_factory=lambda: Target("generic"))
    verify: bool = True
    check_passes: bool = False
    data: Path | None = None
    precision: Precision = "fp32"
    adaptive: Adaptive | None = None

    @property
    def rules(self) -> Target:
        """The target as far as opset and precision allow."""
        if self.precision != "fp32":
            return for_half_precision(self.target)
        return self.target if self.opset is None else for_opset(self.target, self.opset)

    @property
    def tolerance(self) -> float:
        """The largest difference allowed, as a share of the logits' spread."""
        return TOLERANCE[self.precision]


def check_options(options: ExportOptions) -> None:
    """Find bad options before any work.

    Raises:
        OptionError: one of them cannot be used.
    """
    if options.batch_size < 1:
        raise OptionError(f"--batch-size: {options.batch_size} images make no batch; expected at least 1")
    if options.opset is not None and options.opset not in OPSETS:
        raise OptionError(f"--opset: {options.opset} cannot be emitted; expected {OPSETS[0]} to {OPSETS[-1]}")
