"""What a module chooses for every image, besides its outputs: the patches that it keeps, and what its gates decide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slimc import ir
from slimc.ir.gate_usage import BlockUsage, Usage
from slimc.pytorch.attention import Attention
from slimc.pytorch.block import Block
from slimc.pytorch.gates import Gates
from slimc.pytorch.network import VisionTransformer
from slimc.pytorch.tokens import SelectTokens


@dataclass(frozen=True, eq=False)
class Choices:
    """The outputs of B images by name, and what was chosen on the way.

    Attributes:
        outputs: by name.
        kept: the patches [B, K] that each selection keeps, by grid position, best first.
        margins: [B], the least gap between the last score kept and the first dropped, of a standard deviation of the scores.
        usage: what the gates decided; none where there are none.
    """

    outputs: dict[str, Tensor]
    kept: tuple[Tensor, ...]
    margins: Tensor
    usage: Usage | None


def choices(module: VisionTransformer, images: Tensor) -> Choices:
    """Run `module` on `images` [B, channels, height, width], block by block."""
    x, visible = module.embed(images), None
    positions = _positions(module, x)
    found: dict[str, Tensor] = {}
    kept: list[Tensor] = []
    margins = x.new_full((x.shape[0],), torch.inf)
    decided: list[tuple[BlockUsage, Tensor]] = []
    for i, block in enumerate(module.blocks[: module.needed]):
        assert isinstance(block, Block)
        if block.select is not None:
            best, margin = _best(block.select, x, visible)
            kept.append(positions.gather(1, best + block.select.prefix))
            margins = margins.minimum(margin)
            if block.select.drop:
                positions = torch.cat((positions[:, : block.select.prefix], kept[-1]), 1)
            x, visible = block.select(x, visible)
        decided.append(_usage(block, x))
        x, visible = block.behind(x, visible)
        positions = positions if block.node.live is None else positions[:, torch.from_numpy(block.node.live)]
        found |= module.read_block(i, x)
    found |= module.read_out(x, visible)
    gated = any(isinstance(block, Block) and block.gates is not None for block in module.blocks)
    usage = Usage(tuple(used for used, _ in decided), torch.stack([m for _, m in decided]).amin(0).cpu().numpy())
    outputs = {output.name: found[output.name] for output in module.outputs}
    return Choices(outputs, tuple(kept), margins, usage if gated else None)


def _positions(module: VisionTransformer, x: Tensor) -> Tensor:
    """The grid position of every row [B, N]; -1 for prefix rows."""
    patches = module.patch_embed.patches
    count = x.shape[1] - module.prefix
    grid = np.concatenate([np.full(module.prefix, -1), np.arange(count) if patches is None else patches])
    return torch.from_numpy(grid).to(x.device).expand(x.shape[0], -1)


def _best(select: SelectTokens, x: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor]:
    """The patches that a selection keeps [B, K], best first, and how surely [B]."""
    scores, order = torch.sort(select.scores(x, visible), dim=1, descending=True, stable=True)
    left = scores.shape[1] if visible is None else int(visible[0, select.prefix :].sum())
    keep = min(select.keep, left)
    if keep == left:
        return order[:, :keep], x.new_full((x.shape[0],), torch.inf)
    return order[:, :keep], (scores[:, keep - 1] - scores[:, keep]) / scores[:, :left].std(1)


def _usage(block: Block, x: Tensor) -> tuple[BlockUsage, Tensor]:
    """What a block decides on the stream `x` [B, N, C], and the least distance of a logit from its threshold [B]."""
    count, rows = x.shape[:2]
    attention, mlp, tokens = np.ones(count, bool), np.ones(count, bool), np.ones((count, rows), bool)
    margin = x.new_full((count,), torch.inf)
    # Heads about which nothing is decided are on.
    heads = np.ones((count, len(block.attn.widths) if isinstance(block.attn, Attention) else 0), bool)
    if block.gates is None:
        return BlockUsage(attention, mlp, heads, tokens), margin
    n = None if block.norm1 is None else block.norm1(x)
    decided = block.gates(x, n)
    if decided.attention is not None:
        attention = _booleans(decided.attention)[:, 0, 0]
    if decided.mlp is not None:
        mlp = _booleans(decided.mlp)[:, 0, 0]
    if decided.on is not None:
        heads = _booleans(decided.on)[:, :-1]
    if decided.used is not None:
        used = decided.used
        if decided.rows is not None:
            used = torch.zeros((count, rows), dtype=torch.bool, device=x.device).scatter(1, decided.rows, used)
        tokens = _booleans(used)
    for distances in _distances(block.gates, x, n):
        margin = margin.minimum(distances.amin(1)) if distances.shape[1] else margin
    return BlockUsage(attention, mlp, heads, tokens), margin


def _distances(gates: Gates, x: Tensor, n: Tensor | None) -> list[Tensor]:
    """How far logits are from their thresholds [B, ...]."""
    found = [logits.abs() for logits in gates.logits(x) if logits is not None]
    if gates.tokens is not None and gates.token_gate is not None and n is not None:
        scores = gates.tokens(n[:, gates.prefix :])[..., 0]
        found.append((scores - gates.token_gate.threshold).abs())
    return found


def _booleans(values: Tensor) -> ir.BoolArray:
    array: ir.BoolArray = values.cpu().numpy() > 0
    return array
