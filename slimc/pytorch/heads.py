"""Heads of equal widths, computed together by one scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimc import ir
from slimc.pytorch.layers import Norm, hold, normalised
from slimc.pytorch.rows import Rows


class HeadGroup(nn.Module):
    """softmax(q k^T scale + bias) v of H heads, and what stands before: masks, norms and turns of queries and keys.

    `live` are the rows whose queries are computed; `ghosts` rows stand behind the keys, which are not turned. `gates` [H]
    number the decisions that switch the heads, the last of all decisions being one; none where none is switched. A head
    that is off yields zero, or with `own_values` every row its own value.
    """

    mask: Tensor | None
    value_mask: Tensor | None
    query_cos: Tensor | None
    query_sin: Tensor | None
    key_cos: Tensor | None
    key_sin: Tensor | None
    gates: Tensor | None

    def __init__(
        self,
        heads: Sequence[ir.Head],
        scale: float,
        keys: ir.IndexArray,
        live: Rows,
        live_rows: ir.IndexArray,
        ghosts: int,
        *,
        own_values: bool,
    ) -> None:
        super().__init__()
        self.heads, self.scale, self.own_values, self.live = len(heads), scale, own_values, live
        self.width, self.value_width = len(heads[0].query.weight), len(heads[0].value.weight)
        tables = _tables(heads)
        numbers = np.array([-1 if head.gate is None else head.gate for head in heads])
        hold(
            self,
            mask=masks_of([head.mask for head in heads]),
            value_mask=masks_of([head.value_mask for head in heads]),
            gates=numbers if (numbers >= 0).any() else None,
            query_cos=None if tables is None else tables.cos[:, live_rows],
            query_sin=None if tables is None else tables.sin[:, live_rows],
            # Ghosts are not turned.
            key_cos=None if tables is None else _with_rows(tables.cos[:, keys], ghosts, 1.0),
            key_sin=None if tables is None else _with_rows(tables.sin[:, keys], ghosts, 0.0),
        )

    def query(self, x: Tensor, norm: Norm | None) -> Tensor:
        """Queries [B, H, rows, d] from what their product yields [B, rows, H d]."""
        return self._prepared(x, norm, self.query_cos, self.query_sin)

    def key(self, x: Tensor, norm: Norm | None) -> Tensor:
        """Keys [B, H, keys, d] from what their product yields [B, keys, H d]."""
        return self._prepared(x, norm, self.key_cos, self.key_sin)

    def value(self, x: Tensor) -> Tensor:
        """Values [B, H, keys, d_v] from what their product yields [B, keys, H d_v]."""
        value = by_head(x, self.heads)
        return value if self.value_mask is None else value * self.value_mask

    def _prepared(self, x: Tensor, norm: Norm | None, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        x = by_head(x, self.heads)
        x = normalised(norm, x if self.mask is None else x * self.mask)
        if cos is None or sin is None:
            return x
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, on: Tensor | None) -> Tensor:
        """What the heads mix [B, rows, H d_v]; `on` [B, decisions] is 1 for a decision that switches on."""
        mixed = attend(query, key, value, bias, self.scale)
        if self.gates is not None and on is not None:
            factor = on[:, self.gates, None, None]
            mixed = mixed * factor
            if self.own_values:
                mixed = mixed + self.live(value) * (1 - factor)
        return mixed.transpose(1, 2).flatten(2)


def by_head(x: Tensor, heads: int) -> Tensor:
    """`x` [B, N, H d] as [B, H, N, d]."""
    return torch.unflatten(x, 2, (heads, x.shape[2] // heads)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """softmax(q k^T scale + bias) v, `bias` [B or 1, 1, 1, keys]; heads may be without channels."""
    if value.shape[-1] == 0:
        return value.new_zeros((*query.shape[:3], 0))
    if query.shape[-1] == 0:  # all keys score the same
        query, key = F.pad(query, (0, 1)), F.pad(key, (0, 1))
    bias = None if bias is None else bias.expand(query.shape[0], query.shape[1], query.shape[2], -1)
    return F.scaled_dot_product_attention(query, key, value, bias, scale=scale)


def masks_of(masks: Sequence[ir.FloatArray | None]) -> ir.FloatArray | None:
    """The masks of heads of one width [H, 1, d], ones for a head that has none; none where no head has one."""
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    return np.stack([np.ones_like(given[0]) if mask is None else mask for mask in masks])[:, None]


def _tables(heads: Sequence[ir.Head]) -> ir.Rotation | None:
    """The tables of the heads [H, N, d / 2], or [1, N, d / 2] where all have the same; none where no head is turned."""
    given = [head.rotation for head in heads if head.rotation is not None]
    if not given:
        return None
    none = ir.Rotation(np.ones_like(given[0].cos), np.zeros_like(given[0].sin))
    each = [head.rotation or none for head in heads]
    cos, sin = np.stack([rotation.cos for rotation in each]), np.stack([rotation.sin for rotation in each])
    alike = bool((cos == cos[:1]).all() and (sin == sin[:1]).all())
    return ir.Rotation(cos[:1], sin[:1]) if alike else ir.Rotation(cos, sin)


def _with_rows(table: ir.FloatArray, count: int, value: float) -> ir.FloatArray:
    """A table [H, N, d / 2] with `count` further rows of a value."""
    return np.pad(table, ((0, 0), (0, count), (0, 0)), constant_values=value)
