"""Pack heads of different widths into groups of one width each, for a target.

Heads in any order give the same sum, and a channel of zeros in q, k, v and the output changes nothing:

    (q, 0) (k, 0)^T = q k^T,    softmax(.) (v, 0) (Wo, 0)^T = softmax(.) v Wo^T

so heads may be sorted by width and padded to their group's, and heads of zeros may join where a target computes no
attention of fewer than `min_heads`. One group for all wastes arithmetic on padding; one group a
head drowns it in small operations. The partition of the sorted heads that costs least is found by dynamic programming,

    best(j) = min over i < j of  best(i) + group_macs + (j - i) * width(j) * (multiply-accumulates a channel)

with width(j) the widest head of the group, rounded as the target asks. Exact; deterministic (ties take fewer groups).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slimc.ir import Attention, FloatArray, Head, Linear, Model, block_rows, map_arrays
from slimc.passes.rewrite import with_blocks
from slimc.target import Target


@dataclass(frozen=True)
class PackHeads:
    """Sort, group and pad the heads of every attention for `target`."""

    target: Target

    def __call__(self, model: Model) -> Model:
        """`model` with grouped heads; the same object where every attention has groups already."""
        blocks = []
        for block, rows in zip(model.blocks, block_rows(model), strict=True):
            attention = block.attention
            if isinstance(attention, Attention) and attention.groups is None:
                keys = rows.entering if attention.rows is None else len(attention.rows)
                macs = macs_per_channel(model.dim, rows.leaving, keys)
                block = replace(block, attention=_pack(attention, self.target, macs))  # noqa: PLW2901
            blocks.append(block)
        return with_blocks(model, tuple(blocks))


def macs_per_channel(dim: int, queries: int, keys: int) -> int:
    """Multiply-accumulates that one channel of one head costs: its rows of q, k, v and output, scores and mixing."""
    return 2 * dim * (queries + keys) + 2 * queries * keys


def _pack(attention: Attention, target: Target, channel_macs: int) -> Attention:
    heads = sorted(attention.heads, key=_width, reverse=True)
    if heads:
        nothing = map_arrays(heads[-1], np.zeros_like)
        heads += [nothing] * (target.min_heads - len(heads))
    sizes = partition([_width(head) for head in heads], target, channel_macs)
    packed: list[Head] = []
    for size in sizes:
        group = heads[len(packed) : len(packed) + size]
        packed.extend(_pad(head, rounded(_width(group[0]), target)) for head in group)
    return replace(attention, heads=tuple(packed), groups=sizes)


def _width(head: Head) -> int:
    return int(max(head.query.weight.shape[0], head.value.weight.shape[0]))


def partition(widths: list[int], target: Target, channel_macs: int) -> tuple[int, ...]:
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
            work = size * rounded(widths[start], target) * channel_macs
            choices.append((cost + target.group_macs + work, groups + 1, (*sizes, size)))
        best.append(min(choices) if choices else (float("inf"), 0, ()))
    return best[count][2]


def rounded(width: int, target: Target) -> int:
    """`width` as the target's kernels want it."""
    return max(target.min_width, -(-width // target.width_multiple) * target.width_multiple)


def _pad(head: Head, width: int) -> Head:
    query, key, value = (_pad_rows(linear, width) for linear in (head.query, head.key, head.value))
    missing = width - head.output.shape[1]
    output = head.output if missing == 0 else np.pad(head.output, ((0, 0), (0, missing)))
    return replace(head, query=query, key=key, value=value, output=output)


def _pad_rows(linear: Linear, width: int) -> Linear:
    missing = width - linear.weight.shape[0]
    if missing == 0:
        return linear
    bias: FloatArray | None = None if linear.bias is None else np.pad(linear.bias, (0, missing))
    return Linear(np.pad(linear.weight, ((0, missing), (0, 0))), bias)
