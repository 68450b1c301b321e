"""The attention branch: one product for queries, keys and values or two, a batched attention for each group, one product.

Rows that attention does not see are left out of its products where nobody needs their queries; ghosts are rows behind the
keys, what a zero row gives. How many, and which product makes the queries, the plan of the block says.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimc import ir
from slimc.pytorch.heads import HeadGroup, attend, by_head
from slimc.pytorch.layers import (
    NOTHING,
    DType,
    Linear,
    freeze,
    hold,
    norm_of,
    norm_to_ir,
    normalised,
)
from slimc.pytorch.rows import Rows, below
from slimc.targets.plan import AttentionPlan


class Attention(nn.Module):
    """What the attention of a `plan` adds to the rows that live on, from normalised rows of a stream of `rows`.

    `qkv.weight` are the queries of all heads, their keys, their values; `proj.weight` takes the heads side by side.
    """

    ghost: Tensor | None
    mask: Tensor | None
    token_mask: Tensor | None

    def __init__(self, plan: AttentionPlan, rows: int, gates: ir.Gates | None = None) -> None:
        super().__init__()
        node = plan.node
        self.node = _without_weights(node)
        self.widths = [len(head.value.weight) for head in node.heads]
        self.keys, self.live = Rows(plan.key_rows, rows), Rows(plan.live_rows, rows)
        self.ghosts, self.absorbed = plan.ghost_rows, plan.absorbed
        self.ghost_score = math.log(node.ghosts / self.ghosts) if self.ghosts not in (0, node.ghosts) else 0.0
        seen = np.isin(plan.live_rows, plan.key_rows)
        self.one_product = plan.projection == "qkv" and bool(seen.all())
        self.asking = Rows(_places(plan.live_rows, plan.key_rows) if self.one_product else None, len(plan.key_rows))
        self.visible, self.places = Rows(plan.live_rows[seen], rows), Rows(np.flatnonzero(seen), len(seen))
        self.qkv = (
            Linear([getattr(h, kind) for kind in ("query", "key", "value") for h in node.heads]) if node.heads else None
        )
        self.q_norm, self.k_norm, self.norm = map(norm_of, (node.query_norm, node.key_norm, node.output_norm))
        self.proj = Linear([_output(node)])
        own_values = gates is not None and gates.off_heads == "value"
        groups = [
            HeadGroup(run, node.scale, plan.key_rows, self.live, plan.live_rows, self.ghosts, own_values=own_values)
            for run in _runs(plan.groups)
        ]
        self.groups = nn.ModuleList(groups)
        self.sizes = [len(group) for group in _runs(plan.groups)]
        self.asked = [group.heads * group.width for group in groups]
        self.given = [group.heads * group.value_width for group in groups]
        hold(
            self,
            ghost=np.arange(plan.keys) >= len(plan.key_rows) if self.ghost_score else None,
            mask=_value_masks(node) if self.norm is not None else None,
            token_mask=None if node.token_mask is None else node.token_mask[:, None],
        )
        if not node.heads:
            freeze(self.q_norm, self.k_norm, self.norm)

    def forward(self, n: Tensor, seen: Tensor | None = None, on: Tensor | None = None) -> Tensor:
        """What is added [B, live, C], from the normalised rows `n` [B, N, C].

        `seen` [B, N] says which rows may be keys for an image, and `on` [B, decisions] what its gates decided, the last
        decision being one; none where that does not depend on the image.
        """
        if self.token_mask is not None:
            n = n * self.token_mask
        bias = self._bias(n, None if seen is None else self.keys(seen[..., None])[..., 0])
        mixed = list(self._absorbed(n, bias) if self.absorbed else self._mixed(n, bias, on))
        joined = torch.cat(mixed, 2) if mixed else n.new_zeros((n.shape[0], self.live.size, 0))
        joined = normalised(self.norm, joined)
        joined = joined if self.mask is None else joined * self.mask
        added: Tensor = self.proj(joined)
        return added if self.node.residual_scale == 1.0 else added * self.node.residual_scale

    def _mixed(self, n: Tensor, bias: Tensor | None, on: Tensor | None) -> Iterator[Tensor]:
        """What every group mixes [B, live, H d_v]."""
        if self.qkv is None:
            return
        q, kv = self._products(n, self.qkv)
        queries, columns = torch.split(q, self.asked, 2), torch.split(kv, [*self.asked, *self.given], 2)
        for group, q, k, v in zip(self._groups(), queries, columns, columns[len(queries) :], strict=False):
            yield group.mix(group.query(q, self.q_norm), group.key(k, self.k_norm), group.value(v), bias, on)

    def _products(self, n: Tensor, qkv: Linear) -> tuple[Tensor, Tensor]:
        """Queries [B, live, channels], and keys and values side by side [B, keys and ghosts, channels]."""
        keys, bias, asked = self.keys(n), qkv.offset(), sum(self.asked)
        if self.one_product:
            q, kv = torch.split(qkv(keys), [asked, qkv.out_features - asked], 2)
            q = self.asking(q)
        else:
            q = qkv.part(self.visible(n), 0, asked)
            q = self.places.put(q, None if bias is None else bias[:asked])
            kv = qkv.part(keys, asked, qkv.out_features)
        if self.ghosts:
            kv = below(kv, self.ghosts, None if bias is None else bias[asked:])
        return q, kv

    def _absorbed(self, n: Tensor, bias: Tensor | None) -> Iterator[Tensor]:
        """What every group mixes [B, live, H d_v], without keys and values: (q Wk) n^T, and (a n) Wv^T."""
        assert self.qkv is not None
        rows = F.pad(self.keys(n), (0, 0, 0, self.ghosts)).unsqueeze(1)
        queries = torch.split(self.qkv.part(self.live(n), 0, sum(self.asked)), self.asked, 2)
        weights = torch.split(self.qkv.weight[sum(self.asked) :], [*self.asked, *self.given])
        keys, values = weights[: len(queries)], weights[len(queries) :]
        parts = zip(queries, keys, self.sizes, strict=True)
        absorbed = torch.cat(
            [by_head(query, heads) @ torch.unflatten(key, 0, (heads, -1)) for query, key, heads in parts], 1
        )
        folded = absorbed.flatten(1, 2).unsqueeze(1)  # all heads are queries of the same rows
        mixed = torch.split(attend(folded, rows, rows, bias, self.node.scale).view(absorbed.shape), self.sizes, 1)
        for part, value, heads in zip(mixed, values, self.sizes, strict=True):
            yield (part @ torch.unflatten(value, 0, (heads, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)

    def _bias(self, like: Tensor, seen: Tensor | None) -> Tensor | None:
        """What is added to scores [B or 1, 1, 1, keys and ghosts]; `seen` [B, keys] are keys for an image."""
        bias = None if self.ghost is None else (self.ghost.to(like.dtype) * self.ghost_score).view(1, 1, 1, -1)
        if seen is None:
            return bias
        seen = F.pad(seen, (0, self.ghosts), value=True)
        hidden = like.new_zeros(seen.shape).masked_fill(~seen, torch.finfo(like.dtype).min)
        hidden = hidden.view(seen.shape[0], 1, 1, seen.shape[1])
        return hidden if bias is None else hidden + bias

    def _groups(self) -> list[HeadGroup]:
        return [group for group in self.groups if isinstance(group, HeadGroup)]

    def to_ir(self, dtype: DType) -> ir.Attention:
        """The node, without what belongs to the block: its norm and its layer scale."""
        output = self.proj.to_ir(dtype)[0]
        heads: list[ir.Head] = []
        if self.qkv is not None:
            linears, count = self.qkv.to_ir(dtype), len(self.widths)
            outputs = np.split(output.weight, np.cumsum(self.widths)[:-1], axis=1)
            parts = zip(self.node.heads, linears, linears[count:], linears[2 * count :], outputs, strict=False)
            heads = [replace(head, query=q, key=k, value=v, output=o) for head, q, k, v, o in parts]
        return replace(
            self.node,
            heads=tuple(heads),
            output_bias=output.bias,
            query_norm=norm_to_ir(self.q_norm, dtype),
            key_norm=norm_to_ir(self.k_norm, dtype),
            output_norm=norm_to_ir(self.norm, dtype),
        )


def _without_weights(node: ir.Attention) -> ir.Attention:
    """`node` with nothing where its module has weights."""
    heads = tuple(
        replace(head, query=NOTHING, key=NOTHING, value=NOTHING, output=NOTHING.weight) for head in node.heads
    )
    return replace(node, heads=heads, output_bias=None, query_norm=None, key_norm=None, output_norm=None)


def _output(node: ir.Attention) -> ir.Linear:
    """The output projection of the heads side by side."""
    dim, dtype = len(node.norm.weight), node.norm.weight.dtype
    outputs = [head.output for head in node.heads]
    return ir.Linear(np.concatenate(outputs, axis=1) if outputs else np.zeros((dim, 0), dtype), node.output_bias)


def _runs(groups: Sequence[Sequence[ir.Head]]) -> list[list[ir.Head]]:
    """The heads of `groups`, together where their widths are equal and they follow each other."""
    heads = itertools.chain.from_iterable(groups)
    runs = itertools.groupby(heads, key=lambda head: (len(head.query.weight), len(head.value.weight)))
    return [list(run) for _, run in runs]


def _value_masks(node: ir.Attention) -> ir.FloatArray | None:
    """The masks of the values side by side; none where no head has one."""
    given = [head.value_mask for head in node.heads if head.value_mask is not None]
    if not given:
        return None
    ones = [np.ones(len(head.value.weight), given[0].dtype) for head in node.heads]
    return np.concatenate(
        [one if head.value_mask is None else head.value_mask for head, one in zip(node.heads, ones, strict=True)]
    )


def _places(rows: ir.IndexArray, among: ir.IndexArray) -> ir.IndexArray:
    """Where each of `rows` stands among the others."""
    order = np.argsort(among)
    return order[np.searchsorted(among[order], rows)]
