"""Pack heads of different widths into groups of one width each, for a target.

Heads in any order give the same sum, and a channel of zeros in q, k, v and the output changes nothing:

    (q, 0) (k, 0)^T = q k^T,    softmax(.) (v, 0) (Wo, 0)^T = softmax(.) v Wo^T

so heads may be sorted by width and padded to their group's, in q and k and in v, and heads of zeros may join where a target
computes no attention of fewer than `min_heads`. One group for all wastes arithmetic on padding; one group a head drowns it
in small operations. The partition of the sorted heads that costs least is found by dynamic programming,

    best(j) = min over i < j of  best(i) + cost of a group of j - i heads, all of width(j)

with width(j) the widest head of the group, rounded as the target asks, and costs as in `slimc.targets.costs`. Exact;
deterministic (ties take fewer groups).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from slimc.ir import Attention, FloatArray, Head, Linear, Model, map_arrays
from slimc.passes.rewrite import with_blocks
from slimc.targets.costs import Work
from slimc.targets.plan import head_width, plan_model
from slimc.targets.target import Target


@dataclass(frozen=True)
class PackHeads:
    """Sort, group and pad the heads of every attention for `target`, which will run on `batch_size` images at a time."""

    target: Target
    batch_size: int = 1

    def __call__(self, model: Model) -> Model:
        """`model` with grouped heads; the same object where every attention has groups already."""
        blocks = []
        # Costs are weighed as if no image decided anything: as many rows and products as there are without gates.
        ungated = with_blocks(
            model, tuple(block if block.gates is None else replace(block, gates=None) for block in model.blocks)
        )
        for block, plan in zip(model.blocks, plan_model(ungated, self.target), strict=True):
            attention = plan.attention
            if attention is not None and attention.node.groups is None:
                keys, divisible = len(attention.key_rows), attention.divisible_queries
                work = Work(model.dim, plan.rows.leaving, keys, self.batch_size, divisible)
                block = replace(block, attention=_pack(attention.node, self.target, work))  # noqa: PLW2901
            blocks.append(block)
        return with_blocks(model, tuple(blocks))


def _pack(attention: Attention, target: Target, work: Work) -> Attention:
    heads = sorted(attention.heads, key=head_width, reverse=True)
    if heads:
        nothing = map_arrays(heads[-1], np.zeros_like)
        heads += [nothing] * (target.min_heads - len(heads))
    sizes = partition([head_width(head) for head in heads], target, work)
    packed: list[Head] = []
    for size in sizes:
        packed.extend(_padded(heads[len(packed) : len(packed) + size], target))
    return replace(attention, heads=tuple(packed), groups=sizes)


def partition(widths: Sequence[int], target: Target, work: Work) -> tuple[int, ...]:
    """Sizes of the cheapest runs of `widths`, which fall."""
    count = len(widths)
    best: list[tuple[float, int, tuple[int, ...]]] = [(0.0, 0, ())]
    for end in range(1, count + 1):
        choices = []
        for start in range(end):
            size = end - start
            unreachable = start > 0 and not best[start][2]
            if unreachable or not min(target.min_heads, count) <= size <= (target.max_heads or count):
                continue
            cost, groups, sizes = best[start]
            added = target.costs.group(size, rounded(widths[start], target), work)
            choices.append((cost + added, groups + 1, (*sizes, size)))
        best.append(min(choices) if choices else (math.inf, 0, ()))
    return best[count][2]


def rounded(width: int, target: Target) -> int:
    """`width` as the target's kernels want it."""
    return max(target.min_width, -(-width // target.width_multiple) * target.width_multiple)


def _padded(group: list[Head], target: Target) -> list[Head]:
    """`group` with one width for queries and keys and one for values; a target that stacks them wants them alike."""
    d_qk, d_v = (rounded(max(len(getattr(h, part).weight) for h in group), target) for part in ("query", "value"))
    if target.stacked_groups:
        d_qk = d_v = max(d_qk, d_v)
    return [_pad(head, d_qk, d_v) for head in group]


def _pad(head: Head, d_qk: int, d_v: int) -> Head:
    query, key, value = _pad_rows(head.query, d_qk), _pad_rows(head.key, d_qk), _pad_rows(head.value, d_v)
    missing = d_v - head.output.shape[1]
    output = head.output if missing == 0 else np.pad(head.output, ((0, 0), (0, missing)))
    return replace(head, query=query, key=key, value=value, output=output)


def _pad_rows(linear: Linear, width: int) -> Linear:
    missing = width - linear.weight.shape[0]
    if missing == 0:
        return linear
    bias: FloatArray | None = None if linear.bias is None else np.pad(linear.bias, (0, missing))
    return Linear(np.pad(linear.weight, ((0, missing), (0, 0))), bias)
