"""Selecting tokens, image by image: `slimc.ir.SelectTokens`. A choice has no derivative: no scorer is trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimc import ir
from slimc.pytorch.layers import DType, LayerNorm, Linear, freeze


class TokenScorer(nn.Module):
    """How much each patch row is worth keeping: `slimc.ir.TokenScorer`."""

    def __init__(self, node: ir.TokenScorer) -> None:
        super().__init__()
        self.norm, self.local, self.context = LayerNorm(node.norm), Linear([node.local]), Linear([node.context])
        self.layers = nn.ModuleList(Linear([layer]) for layer in node.layers)

    def forward(self, x: Tensor, kept: Tensor | None) -> Tensor:
        """Scores [B, N] of patch rows [B, N, C], of which `kept` [B, N] make the context; all where that is none."""
        n = self.norm(x)
        context = F.gelu(self.context(n))
        if kept is None:
            mean = context.mean(1, keepdim=True)
        else:
            share = kept.to(x.dtype)[..., None]
            mean = (context * share).sum(1, keepdim=True) / share.sum(1, keepdim=True)
        y = torch.cat((F.gelu(self.local(n)), mean.expand(context.shape)), -1)
        for i, layer in enumerate(self.layers):
            y = layer(y if i == 0 else F.gelu(y))
        return y[..., 0] - y[..., 1] if y.shape[-1] == 2 else y[..., 0]

    def to_ir(self, dtype: DType) -> ir.TokenScorer:
        """The node."""
        (local,), (context,) = self.local.to_ir(dtype), self.context.to_ir(dtype)
        layers = tuple(layer.to_ir(dtype)[0] for layer in self.layers if isinstance(layer, Linear))
        return ir.TokenScorer(self.norm.to_ir(dtype), local, context, layers)


class SelectTokens(nn.Module):
    """The stream after a selection."""

    def __init__(self, node: ir.SelectTokens) -> None:
        super().__init__()
        self.keep, self.prefix, self.drop = node.keep, node.prefix, node.drop
        self.scorer = TokenScorer(node.scorer)
        freeze(self)

    def forward(self, x: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The stream [B, N, C] and which of its rows are kept [B, N], all where that is none."""
        p = self.prefix
        best = torch.argsort(-self.scores(x, kept), dim=1, stable=True)[:, : self.keep]
        if not self.drop:
            chosen = torch.zeros_like(x[:, p:, 0], dtype=torch.bool).scatter(1, best, True)
            chosen = chosen if kept is None else chosen & kept[:, p:]
            always = chosen.new_ones((x.shape[0], p)) if kept is None else kept[:, :p]
            return x, torch.cat((always, chosen), 1)
        rows = torch.cat((torch.arange(p, device=x.device).expand(x.shape[0], p), best + p), 1)
        return take(x, rows), None if kept is None else kept.gather(1, rows)

    def scores(self, x: Tensor, kept: Tensor | None) -> Tensor:
        """What the patches [B, patches] are ranked by: a NaN is above all, and one that is gone below."""
        patches = None if kept is None else kept[:, self.prefix :]
        score = self.scorer(x[:, self.prefix :], patches)
        score = torch.where(score.isnan(), torch.inf, score)
        return score if patches is None else score.masked_fill(~patches, -torch.inf)

    def to_ir(self, dtype: DType) -> ir.SelectTokens:
        """The node."""
        return ir.SelectTokens(self.scorer.to_ir(dtype), self.keep, self.prefix, self.drop)


def take(x: Tensor, rows: Tensor) -> Tensor:
    """The `rows` [B, n] of every image's stream [B, N, C]."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[2]))


def put(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """`x` [B, N, C] with `values` [B, n, C] in place of its `rows` [B, n]."""
    return x.scatter(1, rows[..., None].expand(-1, -1, x.shape[2]), values)
