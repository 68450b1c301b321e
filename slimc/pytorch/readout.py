"""What is read from the stream: logits, features, rows of the last block. What no output needs is not trained."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from slimc import ir
from slimc.pytorch.latent import LatentPool
from slimc.pytorch.layers import (
    DType,
    Linear,
    freeze,
    linear_of,
    linear_to_ir,
    norm_of,
    norm_to_ir,
    normalised,
)
from slimc.pytorch.rows import Rows


class PreLogits(nn.Module):
    """A linear layer and tanh."""

    def __init__(self, node: ir.Linear) -> None:
        super().__init__()
        self.fc = Linear([node])

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, F] behind both."""
        return torch.tanh(self.fc(x))


class TokenRows(nn.Module):
    """The rows of a stream of `rows` that an output consists of, in its layout."""

    def __init__(self, output: ir.Output, rows: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.rows, self.grid = Rows(output.rows, rows), grid if output.layout == "NCHW" else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, patches, C] or [B, C, height, width] of the stream [B, N, C]."""
        chosen: Tensor = self.rows(x)
        return chosen if self.grid is None else torch.unflatten(chosen.transpose(1, 2), 2, self.grid)


class Readout(nn.Module):
    """The part of a network that reads its stream: `slimc.ir.Classifier`, and rows that are outputs themselves.

    The network is derived from it, so that the names of its modules are timm's: ``norm``, ``fc_norm``, ``head``.
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        node, leaving = model.classifier, [ir.embedded_rows(model), *(rows.leaving for rows in ir.block_rows(model))]
        rows = leaving[-1]
        self.node = replace(node, norm=None, heads=(), pre_logits=None, auxiliary=None, pool=None, pooled_norm=None)
        self.outputs, self.prefix = model.outputs, model.prefix
        self.norm, self.fc_norm = norm_of(node.norm), norm_of(node.pooled_norm)
        self.pool = node.pool if isinstance(node.pool, ir.Pool) else None
        self.pooled = Rows(self.pool.rows, rows) if self.pool is not None else None
        dtype = model.embedding.patch.weight.dtype
        self.attn_pool = LatentPool(node.pool, rows, model.dim, dtype) if isinstance(node.pool, ir.LatentPool) else None
        self.pre_logits = None if node.pre_logits is None else PreLogits(node.pre_logits)
        self.head, self.head_dist = (linear_of(head) for head in (*node.heads, None, None)[:2])
        self.aux_head = linear_of(node.auxiliary)
        self.token_rows = nn.ModuleDict(
            {
                _key(output): TokenRows(output, rows if output.block is None else leaving[output.block + 1], model.grid)
                for output in self.outputs
                if output.rows is not None
            }
        )
        self._freeze_unread()

    def _freeze_unread(self) -> None:
        kinds: set[str] = {output.kind for output in self.outputs}
        if "logits" not in kinds:
            freeze(self.head, self.head_dist, self.aux_head)
        if not kinds & {"logits", "features"} or not (self.node.rows or self.pooled or self.attn_pool):
            freeze(self.fc_norm, self.attn_pool, self.pre_logits)
        if kinds <= {"blocks"}:
            freeze(self.norm)

    def read_block(self, i: int, x: Tensor) -> dict[str, Tensor]:
        """The outputs that are rows of the stream [B, N, C] behind block `i`, by name."""
        return {output.name: self.token_rows[_key(output)](x) for output in self.outputs if output.block == i}

    def read_out(self, x: Tensor, kept: Tensor | None) -> dict[str, Tensor]:
        """The outputs of the last rows [B, N, C], by name; `kept` [B, N] are those that are left, all where that is none."""
        kinds: set[str] = {output.kind for output in self.outputs}
        found: dict[str, Tensor] = {}
        n = normalised(self.norm, x) if self._reads_all(kinds) else None
        features = self._features(x, n) if kinds & {"logits", "features"} else []
        for output in self.outputs:
            if output.kind == "features":
                found[output.name] = sum(features[1:], start=features[0]) / len(features)
            elif output.kind == "logits":
                found[output.name] = self._logits(features, n, kept)
            elif output.kind == "tokens" and n is not None:
                found[output.name] = self.token_rows[_key(output)](n)
        return found

    def _reads_all(self, kinds: set[str]) -> bool:
        """Whether somebody reads many rows behind the last norm."""
        pooled = self.pool is not None or self.attn_pool is not None
        return (
            "tokens" in kinds
            or (pooled and bool(kinds & {"logits", "features"}))
            or (self.aux_head is not None and "logits" in kinds)
        )

    def _features(self, x: Tensor, n: Tensor | None) -> list[Tensor]:
        """The features [B, F] that every head reads."""
        if self.attn_pool is not None and n is not None:
            pooled = [self.attn_pool(n)]
        elif self.pool is not None and self.pooled is not None and n is not None:
            pooled = [pool_rows(self.pool.kind, self.pooled(n))]
        else:
            pooled = [normalised(self.norm, x[:, row]) if n is None else n[:, row] for row in self.node.rows]
        pooled = [normalised(self.fc_norm, each) for each in pooled]
        return pooled if self.pre_logits is None else [self.pre_logits(each) for each in pooled]

    def _logits(self, features: list[Tensor], n: Tensor | None, kept: Tensor | None) -> Tensor:
        heads = [head for head in (self.head, self.head_dist) if head is not None]
        first, *others = (head(each) for head, each in zip(heads, features, strict=True))
        logits: Tensor = sum(others, start=first)
        logits = logits if self.node.scale == 1.0 else logits * self.node.scale
        if self.aux_head is None or n is None:
            return logits
        each = self.aux_head(n[:, self.prefix :])
        if kept is not None:
            each = each.masked_fill(~kept[:, self.prefix :, None], -torch.inf)
        largest: Tensor = each.amax(1)
        return logits + largest

    def classifier_to_ir(self, dtype: DType) -> ir.Classifier:
        """The node."""
        heads = tuple(head.to_ir(dtype)[0] for head in (self.head, self.head_dist) if isinstance(head, Linear))
        return replace(
            self.node,
            norm=norm_to_ir(self.norm, dtype),
            heads=heads,
            pre_logits=None if self.pre_logits is None else linear_to_ir(self.pre_logits.fc, dtype),
            auxiliary=linear_to_ir(self.aux_head, dtype),
            pool=self.pool if self.attn_pool is None else self.attn_pool.to_ir(dtype),
            pooled_norm=norm_to_ir(self.fc_norm, dtype),
        )


def _key(output: ir.Output) -> str:
    """The name of an output without dots, which names of modules may not have."""
    return output.name.replace(".", "_")


def pool_rows(kind: str, rows: Tensor) -> Tensor:
    """Features [B, C] of rows [B, N, C], or [B, 2 C], as `slimc.ir.Pool` says."""
    if kind == "token+avg":
        return torch.cat((rows[:, 0], rows[:, 1:].mean(1)), -1)
    if kind == "avg":
        return rows.mean(1)
    return rows.amax(1) if kind == "max" else 0.5 * (rows.mean(1) + rows.amax(1))
