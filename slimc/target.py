"""What a target's kernels like: widths, key counts, how much a further group of heads costs."""

from __future__ import annotations

from dataclasses import dataclass

from slimc.errors import OptionError


@dataclass(frozen=True)
class Target:
    """Rules that head packing and emission follow.

    `width_multiple` and `min_width` bound head widths, `min_heads` the heads of one batched attention, `key_multiple` the
    number of keys where ghosts make it free. `group_macs` is what one more group of heads costs, in multiply-accumulates.
    With `one_projection` queries, keys and values come from one product even where fewer rows ask than are asked: a
    second product and its slice of the rows cost three kernels more than the few queries that nobody reads.
    """

    name: str
    width_multiple: int = 1
    min_width: int = 1
    min_heads: int = 1
    key_multiple: int = 1
    group_macs: float = 3e6
    one_projection: bool = False


_TENSOR_CORES = ("sm75", "sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm120", "sm121")
TARGETS = ("generic", "cpu", *_TENSOR_CORES)


def find_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        OptionError: there is none.
    """
    if name in ("generic", "cpu"):
        return Target(name)
    if name in _TENSOR_CORES:
        return Target(
            name, width_multiple=8, min_width=16, min_heads=2, key_multiple=8, group_macs=60e6, one_projection=True
        )
    raise OptionError(f"--target: {name!r} is unknown; expected one of {', '.join(TARGETS)}")
