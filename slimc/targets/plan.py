"""How the attention of a block will be computed: what packing, counting and emission have to agree on.

Everything here follows from the IR and the target, for a stream of `entering` rows of which `live` outlive the attention.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from slimc import ir
from slimc.targets.target import Target


def rules_for(block: ir.Block, target: Target) -> Target:
    """The rules for `block`: where rows and heads depend on the image, keys and values are always made, for products."""
    return target if block.gates is None else replace(target, absorb=False, attention_operator=False)


def may_use_operator(attention: ir.Attention, target: Target) -> bool:
    """Whether the Attention operator serves: it knows no masks."""
    return target.attention_operator and all(head.mask is None for head in attention.heads)


def head_groups(attention: ir.Attention) -> list[tuple[ir.Head, ...]]:
    """Heads by group: as packed, else runs of equal widths."""
    if attention.groups is None:
        runs = itertools.groupby(attention.heads, key=lambda h: (h.query.weight.shape[0], h.value.weight.shape[0]))
        return [tuple(run) for _, run in runs]
    heads = iter(attention.heads)
    return [tuple(itertools.islice(heads, size)) for size in attention.groups]


def ghost_rows(keys: int, ghosts: int, target: Target) -> int:
    """Zero rows to append to `keys` keys that stand for `ghosts` ghosts; none where there are no ghosts."""
    if ghosts <= target.exact_ghosts:
        return ghosts
    return -keys % target.key_multiple or target.key_multiple


def projects_ghosts(attention: ir.Attention, keys: int, target: Target) -> bool:
    """Whether the product that makes the keys and values of `keys` rows makes those of the ghosts too."""
    channels = sum(head.key.weight.size + head.value.weight.size for head in attention.heads)
    return ghost_rows(keys, attention.ghosts, target) * channels <= target.spare_query_macs


def projects_once(attention: ir.Attention, entering: int, live: ir.IndexArray, target: Target) -> bool:
    """Whether one product makes queries, keys and values, for a stream of `entering` rows of which `live` ask."""
    keys = ir.key_rows(attention, entering)
    if not np.isin(live, keys).all() or any(h.key.bias is not None for h in attention.heads):
        return False
    computed = len(keys) + ghost_rows(len(keys), attention.ghosts, target)
    channels = sum(head.query.weight.size for head in attention.heads)
    return (computed - len(live)) * channels <= target.spare_query_macs


def absorbs(attention: ir.Attention, entering: int, live: ir.IndexArray, target: Target) -> bool:
    """Whether absorbing is exact and saves work, for a stream of `entering` rows of which `live` ask."""
    keys, heads = ir.key_rows(attention, entering), attention.heads
    if not target.absorb or not np.isin(live, keys).all() or attention.scale != 1.0:
        return False
    if any(h.mask is not None or h.key.bias is not None or h.value.bias is not None for h in heads):
        return False
    dim, width = heads[0].query.weight.shape[1], widest_head(attention)
    usual: int = dim * len(keys) * sum(len(h.key.weight) + len(h.value.weight) for h in heads)
    return bool(2 * len(live) * len(heads) * dim * (len(keys) + 2 * width) < usual)


def widest_head(attention: ir.Attention) -> int:
    """Width of the widest head of `attention`."""
    return max(map(head_width, attention.heads))


def head_width(head: ir.Head) -> int:
    """Channels of `head` that a batched product pads it to at least."""
    return max(len(head.query.weight), len(head.value.weight))


def rows_for_parts(attention: ir.Attention, entering: int, live: ir.IndexArray, target: Target) -> ir.IndexArray | None:
    """Rows that ask where the queries of a head alone are cut into `query_parts` of one size; none where that fails.

    These are the live rows, and as many others as it takes: rows that end here, then ghosts where they are projected with
    the keys, numbered behind all rows.
    """
    parts = target.query_parts
    if parts == 1 or not may_use_operator(attention, target):
        return None
    missing = -len(live) % parts
    if missing == 0:
        return live
    if attention.rows is not None:
        return None
    once = projects_once(attention, entering, live, target)
    ghosts = ghost_rows(entering, attention.ghosts, target) if once else 0
    others = np.setdiff1d(np.arange(entering + ghosts), live)[:missing]
    return np.concatenate([live, others]) if len(others) == missing else None


def asking_rows(attention: ir.Attention, entering: int, live: ir.IndexArray, target: Target) -> ir.IndexArray:
    """Rows that ask: the live ones, and others where a head alone is cut into parts."""
    rows = rows_for_parts(attention, entering, live, target)
    alone = any(len(group) == 1 for group in head_groups(attention))
    return live if rows is None or not alone else rows
