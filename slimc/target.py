"""What a target's kernels like: widths, key counts, how much a further group of heads costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from slimc.errors import OptionError


@dataclass(frozen=True)
class Target:
    """Rules that head packing and emission follow.

    `width_multiple` and `min_width` bound head widths, `min_heads` and `max_heads` the heads of one batched attention;
    `key_multiple` is the number of keys where ghosts make it free. `group_macs` is what one more group of heads costs, in
    multiply-accumulates. `spare_query_macs` are what queries that nobody reads may cost where they spare a product of
    their own. The query bias is added inside the product where `bias_in_product`, else once queries are cut into heads.
    `absorb` lets attentions of few queries do without keys and values, which costs fused attention kernels.
    With `stacked_groups` several groups of heads have a product each, cut into heads in one piece: TensorRT needs a kernel
    for every piece.
    """

    name: str
    width_multiple: int = 1
    min_width: int = 1
    min_heads: int = 1
    max_heads: int | None = None
    key_multiple: int = 1
    group_macs: float = 3e6
    spare_query_macs: float = 0.0
    bias_in_product: bool = True
    absorb: bool = False
    stacked_groups: bool = False


_TENSOR_CORES = ("sm75", "sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm120", "sm121")
TARGETS = ("generic", "cpu", *_TENSOR_CORES)


def find_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        OptionError: there is none.
    """
    if name == "generic":
        # A head to itself needs no padding: every dimension is exactly what the masks left.
        return Target(name, max_heads=1)
    if name == "cpu":
        # On CPUs it is also the fastest: one head's matrices need no transposing.
        return Target(name, max_heads=1, spare_query_macs=3e6, absorb=True)
    if name in _TENSOR_CORES:
        return Target(
            name,
            width_multiple=8,
            min_width=16,
            min_heads=2,
            key_multiple=8,
            group_macs=60e6,
            spare_query_macs=math.inf,
            bias_in_product=False,
            stacked_groups=True,
        )
    raise OptionError(f"--target: {name!r} is unknown; expected one of {', '.join(TARGETS)}")
