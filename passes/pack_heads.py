"""Pack heads of different widths into groups of one width each, for a target.

Heads in any order give the same sum, and a channel of zeros in q, k, v and the output changes nothing:

    (q, 0) (k, 0)^T = q k^T,    softmax(.) (v, 0) (Wo, 0)^T = softmax(.) v Wo^T

so heads may be sorted by width and padded to their group's, in q and k and in v, and heads of zeros may join where a target
computes no attention of fewer than `min_heads`. One group for all wastes arithmetic on padding; one group a head drowns it
in small operations. The partition of the sorted heads that costs least is found by dynamic programming,

    best(j) = min over i < j of  best(i) + cost of a group of j - i heads, all of width(j)

with width(j) the widest head of the group, rounded as the target asks, and costs as in `slimc.targets.costs`. Exact;
deterministic (ties take fewer groups).

Where heads turn their queries and keys, channel c pairs with c + d / 2, and zeros join both halves. Where these have a norm,
they have one width and are not padded. A norm over all heads' outputs goes with its channels and does not count padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from slimc.ir import Attention, Head, Linear, Model, Norm, Rotation, map_arrays, pad_outputs
from slimc.passes.norms import place_channels
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
    order = sorted(range(len(attention.heads)), key=lambda i: head_width(attention.heads[i]), reverse=True)
    heads = [attention.heads[i] for i in order]
    if heads:
        nothing = replace(map_arrays(heads[-1], np.zeros_like), rotation=heads[-1].rotation)
        heads += [nothing] * (target.min_heads - len(heads))
    sizes = partition([head_width(head) for head in heads], target, work)
    packed: list[Head] = []
    for size in sizes:
        packed.extend(_padded(heads[len(packed) : len(packed) + size], target, attention))
    norm = attention.output_norm
    if norm is not None:
        norm = _placed(norm, attention.heads, order, packed)
    return replace(attention, heads=tuple(packed), groups=sizes, output_norm=norm)


def _placed(norm: Norm, heads: Sequence[Head], order: Sequence[int], packed: Sequence[Head]) -> Norm | None:
    """The norm over the outputs of `heads`, where `packed[j]` begins with the channels of head `order[j]`."""
    starts = np.cumsum([0, *(len(head.value.weight) for head in packed)])
    position = {head: j for j, head in enumerate(order)}
    places = [starts[position[i]] + np.arange(len(head.value.weight)) for i, head in enumerate(heads)]
    return place_channels(norm, np.concatenate(places), int(starts[-1]))


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


def _padded(group: list[Head], target: Target, attention: Attention) -> list[Head]:
    """`group` with one width for queries and keys and one for values; a target that stacks them wants them alike."""
    d_qk, d_v = (rounded(max(len(getattr(h, part).weight) for h in group), target) for part in ("query", "value"))
    if target.stacked_groups:
        d_qk = d_v = max(d_qk, d_v)
    if any(head.rotation is not None for head in group):
        d_qk += d_qk % 2
    if attention.normed:
        d_qk = len(group[0].query.weight)
    return [_pad(head, d_qk, d_v) for head in group]


def _pad(head: Head, d_qk: int, d_v: int) -> Head:
    missing = d_v - head.output.shape[1]
    output = head.output if missing == 0 else np.pad(head.output, ((0, 0), (0, missing)))
    head = replace(head, value=pad_outputs(head.value, d_v), output=output)
    if head.rotation is None:
        return replace(head, query=pad_outputs(head.query, d_qk), key=pad_outputs(head.key, d_qk))
    more = ((0, 0), (0, d_qk // 2 - head.rotation.cos.shape[1]))
    rotation = Rotation(np.pad(head.rotation.cos, more, constant_values=1), np.pad(head.rotation.sin, more))
    return replace(head, query=_pad_halves(head.query, d_qk), key=_pad_halves(head.key, d_qk), rotation=rotation)


def _pad_halves(linear: Linear, width: int) -> Linear:
    """`linear` with zeros behind both halves of its outputs."""
    out, into = linear.weight.shape
    more = (width - out) // 2
    if more == 0:
        return linear
    weight = np.pad(linear.weight.reshape(2, out // 2, into), ((0, 0), (0, more), (0, 0))).reshape(width, into)
    bias = None if linear.bias is None else np.pad(linear.bias.reshape(2, -1), ((0, 0), (0, more))).ravel()
    return Linear(weight, bias)
