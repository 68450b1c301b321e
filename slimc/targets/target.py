"""What a target's kernels like: widths, key counts, how much a further group of heads costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from slimc.errors import OptionError
from slimc.targets.costs import Costs, CountedCosts

# The Attention operator came with opset 23 (ONNX Runtime >= 1.23.1, OpenVINO >= 2026.3).
ATTENTION_OPSET = 23
_BY_COUNT = CountedCosts(3e6)


@dataclass(frozen=True)
class Target:
    """Rules that head packing and emission follow; the defaults are those of the target ``generic``.

    Widths: heads and FFNs have a multiple of `width_multiple`.

    Packing: `min_width` bounds head widths, `min_heads` and `max_heads` the heads of one batched attention; of all groups
    within these bounds, those of the least `costs` are taken. A head to itself needs no padding: on the generic target every
    dimension is exactly what the masks left. With `max_heads` none a group may have any number.

    Ghosts: `key_multiple` is the number of keys where ghosts make it free; up to `exact_ghosts` of them are as many keys.

    Products: `spare_query_macs` are the multiply-accumulates that queries that nobody reads may cost where they spare a
    product of their own. The query bias is added inside the product where `bias_in_product`, else once queries are cut
    into heads. With `stacked_groups` several groups of heads have a product each, cut into heads in one piece: TensorRT
    needs a kernel for every piece. `biases_in_norm` takes biases behind a norm into its spare channel;
    `residual_in_product` lets the last product of a branch add the residual stream, for its bias becomes a channel.

    Attention: `absorb` lets attentions of few queries do without keys and values, which costs fused attention kernels.
    With `attention_operator` groups of several heads are computed by ONNX's Attention, and so is a head alone, its queries
    cut into `query_parts` parts, where their number allows that.

    `tuned` says what the costs were measured on.
    """

    name: str
    width_multiple: int = 1
    min_width: int = 1
    min_heads: int = 1
    max_heads: int | None = 1
    costs: Costs = _BY_COUNT
    key_multiple: int = 1
    exact_ghosts: int = 0
    spare_query_macs: float = 0.0
    bias_in_product: bool = True
    stacked_groups: bool = False
    biases_in_norm: bool = False
    residual_in_product: bool = False
    absorb: bool = False
    attention_operator: bool = False
    query_parts: int = 1
    tuned: str = ""


_TENSOR_CORES = ("sm75", "sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm120", "sm121")
# What a further group costs, where it was measured: on an H100, in PyTorch (benchmarks/results/gpu/findings.md).
_MEASURED_GROUPS = {"sm90": CountedCosts(0.6e9, 17e6)}
TARGETS = ("generic", "cpu", *_TENSOR_CORES)


def find_target(name: str, *, threads: int | None = None, tuning: str | Path | None = None) -> Target:
    """The target called `name`, for `compile` and `export`.

    Args:
        name: "generic", "cpu", "sm75", ...
        threads: of one inference, for "cpu"; None takes those of the tuning, else several.
        tuning: a file that `tune` wrote, for "cpu".

    Raises:
        OptionError: there is no such target, or it has neither threads nor a tuning; the file is no tuning, or one for
            another number of threads.

    Example:
        >>> slimc.find_target("sm89").width_multiple
        8
    """
    if name not in TARGETS:
        raise OptionError(f"--target: {name!r} is unknown; expected one of {', '.join(TARGETS)}")
    if name == "cpu":
        return _cpu(threads, None if tuning is None else Path(tuning))
    if threads is not None:
        raise OptionError(f"--threads: are those of a CPU; {name} is compiled the same for any, expected --target cpu")
    if tuning is not None:
        raise OptionError(f"--tuning: its costs are those of CPUs; {name} has none, expected --target cpu")
    if name == "generic":
        return Target(name)
    return Target(
        name,
        width_multiple=8,
        min_width=16,
        min_heads=2,
        max_heads=None,
        key_multiple=8,
        costs=_MEASURED_GROUPS.get(name, CountedCosts(60e6)),
        spare_query_macs=math.inf,
        bias_in_product=False,
        stacked_groups=True,
        biases_in_norm=True,
    )


def _cpu(threads: int | None, tuning: Path | None) -> Target:
    from slimc.targets.tuning import packaged_tuning, read_tuning

    if threads is not None and threads < 1:
        raise OptionError(f"--threads: {threads} threads cannot run anything; expected at least 1")
    found = packaged_tuning(threads) if tuning is None else read_tuning(tuning)
    if tuning is not None and threads not in (None, found.costs.threads):
        raise OptionError(
            f"--threads: {threads}, but {tuning} was measured for {found.costs.threads}; give one of them"
        )
    return Target(
        "cpu",
        max_heads=None,
        costs=found.costs,
        exact_ghosts=8,
        spare_query_macs=3e6,
        biases_in_norm=True,
        residual_in_product=True,
        absorb=True,
        attention_operator=found.operator,
        query_parts=found.costs.threads if found.operator else 1,
        tuned=f"{found.library}, threads: {found.costs.threads}",
    )


def without_operator(target: Target) -> Target:
    """`target` where the Attention operator cannot be used: heads that it would have taken are computed one by one."""
    if not target.attention_operator:
        return target
    return replace(target, attention_operator=False, query_parts=1, max_heads=1, tuned="")


def for_opset(target: Target, opset: int) -> Target:
    """`target` as far as `opset` has its operators."""
    return without_operator(target) if opset < ATTENTION_OPSET else target


def for_half_precision(target: Target) -> Target:
    """`target` where products are computed in half precision: the residual stream is not to pass through one."""
    return replace(without_operator(target), residual_in_product=False)
