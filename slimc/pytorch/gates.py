"""What a block decides for each image: the meaning of `slimc.ir.Gates`. A decision has no derivative: no gate is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from slimc import ir
from slimc.pytorch.layers import (
    NOTHING,
    DType,
    Norm,
    freeze,
    linear_of,
    linear_to_ir,
    norm_of,
    norm_to_ir,
    normalised,
)


class Decisions(NamedTuple):
    """What is decided for B images; none where that is not decided.

    Attributes:
        attention: 1 where the branch is added, else 0: [B, 1, 1].
        mlp: the same of the FFN.
        on: 1 for a decision about heads that says on; the last is always 1: [B, decisions + 1].
        used: the rows that are used [B, N], booleans.
        rows: the rows that those are, where they are fewer than the stream has: [B, N].
    """

    attention: Tensor | None
    mlp: Tensor | None
    on: Tensor | None
    used: Tensor | None
    rows: Tensor | None


class Gates(nn.Module):
    """The decisions of a block about a stream with `prefix` prefix rows.

    With `gathers`, rows beyond the capacity of the token gate are left out. The norm of the token gate is the block's first.
    """

    def __init__(self, node: ir.Gates, prefix: int, *, gathers: bool) -> None:
        super().__init__()
        tokens = node.tokens
        self.node = replace(node, attention=None, mlp=None, heads=None, tokens=None, norm=None)
        self.token_gate = None if tokens is None else replace(tokens, score=NOTHING)
        self.prefix, self.gathers = prefix, gathers
        self.norm, self.attention, self.mlp = norm_of(node.norm), linear_of(node.attention), linear_of(node.mlp)
        self.heads, self.tokens = linear_of(node.heads), None if tokens is None else linear_of(tokens.score)
        freeze(self)

    def forward(self, x: Tensor, n: Tensor | None) -> Decisions:
        """The decisions about the stream `x` [B, N, C], of which `n` is what the block's first norm makes."""
        attention, mlp, heads = (None if each is None else (each > 0).to(x.dtype) for each in self.logits(x))
        on = None if heads is None else torch.cat((heads, heads.new_ones((heads.shape[0], 1))), 1)
        used, rows = (None, None) if self.tokens is None or n is None else self._choose(self.tokens(n)[..., 0])
        return Decisions(_column(attention), _column(mlp), on, used, rows)

    def logits(self, x: Tensor) -> tuple[Tensor | None, ...]:
        """Logits of the attention and the FFN [B, 1], and of decisions about heads [B, decisions]."""
        p = normalised(self.norm, x[:, 0])
        return tuple(None if policy is None else policy(p) for policy in (self.attention, self.mlp, self.heads))

    def _choose(self, score: Tensor) -> tuple[Tensor, Tensor | None]:
        """Which rows are used, and the rows that those are, by their scores [B, N]."""
        gate, prefix = self.token_gate, self.prefix
        assert gate is not None
        always = score.new_ones((score.shape[0], prefix), dtype=torch.bool)
        patches = score[:, prefix:]
        above = patches > gate.threshold
        if gate.capacity is None:
            return torch.cat((always, above), 1), None
        order = torch.argsort(-patches, dim=1, stable=True)
        if not self.gathers:
            late = torch.arange(patches.shape[1], device=score.device) >= gate.capacity
            above = above & ~torch.zeros_like(above).scatter(1, order, late.expand(above.shape))
            return torch.cat((always, above), 1), None
        best = order[:, : gate.capacity]
        first = torch.arange(prefix, device=score.device).expand(score.shape[0], prefix)
        return torch.cat((always, above.gather(1, best)), 1), torch.cat((first, best + prefix), 1)

    def to_ir(self, dtype: DType, norm: Norm | None) -> ir.Gates:
        """The node; `norm` is the block's first."""
        tokens = self.token_gate
        if tokens is not None:
            tokens = replace(tokens, norm=norm_to_ir(norm, dtype), score=linear_to_ir(self.tokens, dtype))
        return replace(
            self.node,
            attention=linear_to_ir(self.attention, dtype),
            mlp=linear_to_ir(self.mlp, dtype),
            heads=linear_to_ir(self.heads, dtype),
            tokens=tokens,
            norm=norm_to_ir(self.norm, dtype),
        )


def _column(decision: Tensor | None) -> Tensor | None:
    """[B, 1] as [B, 1, 1]."""
    return None if decision is None else decision[:, :, None]
