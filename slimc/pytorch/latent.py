"""Attention pooling by a learnt query: the meaning of `slimc.ir.LatentPool`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from slimc import ir
from slimc.pytorch.heads import attend, by_head, masks_of
from slimc.pytorch.layers import NOTHING, DType, Linear, hold, norm_of, norm_to_ir, normalised, parameter, read
from slimc.pytorch.mlp import Mlp
from slimc.pytorch.rows import Rows
from slimc.targets.plan import latent_runs


class LatentPool(nn.Module):
    """Features [B, C] of some of `rows` rows [B, N, C].

    `query` are the queries of all heads, one after the other; `kv.weight` their keys, then their values.
    """

    def __init__(self, node: ir.LatentPool, rows: int, dim: int, dtype: DType) -> None:
        super().__init__()
        heads, runs = node.heads, latent_runs(node)
        nothing = NOTHING.weight
        hollow = (replace(head, query=nothing, key=NOTHING, value=NOTHING, output=nothing) for head in heads)
        self.node = replace(node, heads=tuple(hollow), output_bias=None, mlp=None)
        self.rows, self.absorbed, self.scale = Rows(node.rows, rows), node.absorbed, node.scale
        self.sizes = [len(head.query) for head in heads], [len(head.value.weight) for head in heads]
        self.query = parameter(np.concatenate([head.query for head in heads])) if heads else None
        self.kv = Linear([getattr(head, kind) for kind in ("key", "value") for head in heads]) if heads else None
        self.groups = nn.ModuleList(map(_Group, runs))
        outputs = [head.output for head in heads] or [np.zeros((dim, 0), dtype)]
        self.proj = Linear([ir.Linear(np.concatenate(outputs, axis=1), node.output_bias)])
        self.norm = None if node.mlp is None else norm_of(node.mlp.norm)
        self.mlp = None if node.mlp is None else Mlp(node.mlp, 1, dim)

    def forward(self, n: Tensor) -> Tensor:
        """Features [B, C] of the normalised rows [B, N, C]."""
        mixed = list(self._mixed(self.rows(n)))
        y: Tensor = self.proj(torch.cat(mixed, 1) if mixed else n.new_zeros((n.shape[0], 0)))
        if self.mlp is None:
            return y
        added: Tensor = self.mlp.fc2(self.mlp.units(normalised(self.norm, y)))
        return y + added

    def _mixed(self, rows: Tensor) -> Iterator[Tensor]:
        """What every group mixes [B, H d_v]."""
        if self.query is None or self.kv is None:
            return
        groups = [group for group in self.groups if isinstance(group, _Group)]
        asked, given = [g.heads * g.width for g in groups], [g.heads * g.value_width for g in groups]
        queries = torch.split(self.query, asked)
        if self.absorbed:
            weights, bias = torch.split(self.kv.weight, [*asked, *given]), self.kv.offset()
            biases = [None] * len(given) if bias is None else torch.split(bias[sum(asked) :], given)
            parts = zip(groups, queries, weights, weights[len(groups) :], biases, strict=False)
            for group, query, key, value, each in parts:
                yield group.mix_absorbed(query, key, value, each, rows, self.scale)
            return
        columns = torch.split(self.kv(rows), [*asked, *given], 2)
        for group, query, key, value in zip(groups, queries, columns, columns[len(groups) :], strict=False):
            yield group.mix(query, key, value, self.scale)

    def to_ir(self, dtype: DType) -> ir.LatentPool:
        """The node."""
        output, heads = self.proj.to_ir(dtype)[0], list[ir.LatentHead]()
        if self.query is not None and self.kv is not None:
            queries = np.split(read(self.query, dtype), np.cumsum(self.sizes[0])[:-1])
            outputs = np.split(output.weight, np.cumsum(self.sizes[1])[:-1], axis=1)
            linears, count = self.kv.to_ir(dtype), len(queries)
            parts = zip(self.node.heads, queries, linears[:count], linears[count:], outputs, strict=True)
            heads = [replace(head, query=q, key=k, value=v, output=o) for head, q, k, v, o in parts]
        mlp = None if self.mlp is None else self.mlp.to_ir(dtype, norm_to_ir(self.norm, dtype))
        return replace(self.node, heads=tuple(heads), output_bias=output.bias, mlp=mlp)


class _Group(nn.Module):
    """H heads of equal widths."""

    mask: Tensor | None
    value_mask: Tensor | None

    def __init__(self, heads: Sequence[ir.LatentHead]) -> None:
        super().__init__()
        self.heads, self.width, self.value_width = len(heads), len(heads[0].query), len(heads[0].value.weight)
        hold(
            self,
            mask=masks_of([head.mask for head in heads]),
            value_mask=masks_of([head.value_mask for head in heads]),
        )

    def _query(self, query: Tensor) -> Tensor:
        """The query [H, 1, d] that meets keys without a mask."""
        query = query.view(self.heads, 1, self.width)
        return query if self.mask is None else query * self.mask.square()

    def _masked(self, values: Tensor) -> Tensor:
        """Mixed values [B, H, 1, d_v] as [B, H d_v]."""
        return (values if self.value_mask is None else values * self.value_mask).flatten(1)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """What the heads mix [B, H d_v] of keys [B, N, H d] and values [B, N, H d_v]."""
        queries = self._query(query).expand(key.shape[0], -1, -1, -1)
        return self._masked(attend(queries, by_head(key, self.heads), by_head(value, self.heads), None, scale))

    def mix_absorbed(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, rows: Tensor, scale: float
    ) -> Tensor:
        """The same from rows [B, N, C] and the weights of keys [H d, C] and values [H d_v, C]."""
        absorbed = self._query(query) @ torch.unflatten(key, 0, (self.heads, self.width))
        queries = absorbed.transpose(0, 1).expand(rows.shape[0], 1, -1, -1)
        mixed = attend(queries, rows.unsqueeze(1), rows.unsqueeze(1), None, scale).transpose(1, 2)
        values = mixed @ torch.unflatten(value, 0, (self.heads, self.value_width)).transpose(1, 2)
        return self._masked(values if bias is None else values + bias.view(self.heads, 1, self.value_width))
