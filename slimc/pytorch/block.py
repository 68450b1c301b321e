"""A block: x = select(x); x = x[live] + attention(x); x = x + mlp(x), with what an image decides about both."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from slimc import ir
from slimc.pytorch.attention import Attention
from slimc.pytorch.gates import Decisions, Gates
from slimc.pytorch.layers import Constant, DType, LayerScale, freeze, norm_of, norm_to_ir, normalised, read
from slimc.pytorch.mlp import Mlp
from slimc.pytorch.rows import Rows
from slimc.pytorch.tokens import SelectTokens, put, take
from slimc.targets.plan import BlockPlan


class Block(nn.Module):
    """The block that `plan` is for, in a stream of `dim` channels with `prefix` prefix rows.

    With `gathers`, its branches work on the rows that the capacity of its token gate leaves.
    """

    def __init__(self, block: ir.Block, plan: BlockPlan, prefix: int, dim: int, *, gathers: bool) -> None:
        super().__init__()
        self.node = replace(block, attention=None, mlp=None, select=None, gates=None)
        attention, mlp, gates = block.attention, block.mlp, block.gates
        rows = plan.branch_rows if gathers else plan.rows.entering
        tokens = None if gates is None else gates.tokens
        self.live = Rows(block.live, rows)
        self.select = None if block.select is None else SelectTokens(block.select)
        self.gates = None if gates is None else Gates(gates, prefix, gathers=gathers)
        shared = attention.norm if isinstance(attention, ir.Attention) else None if tokens is None else tokens.norm
        self.norm1 = norm_of(shared)
        self.attn: Attention | Constant | None = None
        if plan.attention is not None:
            self.attn = Attention(plan.attention, rows, gates)
        elif isinstance(attention, ir.Constant):
            self.attn = Constant(attention.vector)
        if not isinstance(attention, ir.Attention) or not attention.heads:
            freeze(self.norm1)
        self.ls1 = _scale_of(attention)
        self.norm2 = norm_of(mlp.norm) if isinstance(mlp, ir.Mlp) else None
        self.mlp: Mlp | Constant | None = None
        if isinstance(mlp, ir.Mlp):
            self.mlp = Mlp(mlp, self.live.size, dim)
        elif isinstance(mlp, ir.Constant):
            self.mlp = Constant(mlp.vector)
        self.ls2 = _scale_of(mlp)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The stream [B, N, C] behind the block, and which of its rows are kept [B, N], all where that is none."""
        if self.select is not None:
            x, kept = self.select(x, kept)
        return self.behind(x, kept)

    def behind(self, x: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The same, of the stream behind the selection."""
        x = self._feed(self._attend(x, kept)) if self.gates is None else self._decided(x, kept, self.gates)
        return x, None if kept is None else self.live(kept[..., None])[..., 0]

    def _attend(self, x: Tensor, kept: Tensor | None) -> Tensor:
        y: Tensor = self.live(x)
        if isinstance(self.attn, Constant):
            added: Tensor = self.attn()
            return y + added
        if self.attn is None:
            return y
        added = self.attn(normalised(self.norm1, x), kept)
        return y + (added if self.ls1 is None else self.ls1(added))

    def _feed(self, y: Tensor) -> Tensor:
        if self.mlp is None:
            return y
        return y + (self.mlp() if isinstance(self.mlp, Constant) else self._fed(self.mlp, y, None))

    def _fed(self, mlp: Mlp, y: Tensor, on: Tensor | None) -> Tensor:
        """What the FFN adds to the rows `y`."""
        added: Tensor = mlp(normalised(self.norm2, mlp.rows(y)), on)
        return added if self.ls2 is None else self.ls2(added)

    def _decided(self, x: Tensor, kept: Tensor | None, gates: Gates) -> Tensor:
        """The rows that live on, as an image decides."""
        n = None if self.norm1 is None else self.norm1(x)
        decided: Decisions = gates(x, n)
        used, rows, seen = decided.used, decided.rows, decided.used
        work = x
        if rows is not None:
            work, n = take(x, rows), None if n is None else take(n, rows)
        elif kept is not None:
            seen = kept if seen is None else seen & kept
        y = self.live(work)
        used = None if used is None else self.live(used.to(x.dtype)[..., None])
        if isinstance(self.attn, Attention) and n is not None:
            added = self.attn(n, seen, decided.on)
            added = added if self.ls1 is None else self.ls1(added)
            y = y + _times(added, used, decided.attention)
        scattered = rows is not None and self.live.all
        if rows is not None and scattered and not gates.node.tokens_gate_mlp:
            y, scattered = put(x, rows, y), False
        if isinstance(self.mlp, Mlp):
            added = self._fed(self.mlp, y, decided.on)
            y = y + _times(added, used if gates.node.tokens_gate_mlp else None, decided.mlp)
        return put(x, rows, y) if rows is not None and scattered else y

    def to_ir(self, dtype: DType) -> ir.Block:
        """The node."""
        attention: ir.Attention | ir.Constant | None = None
        if isinstance(self.attn, Constant):
            attention = ir.Constant(read(self.attn.bias, dtype))
        elif self.attn is not None:
            node, scale = self.attn.to_ir(dtype), None if self.ls1 is None else read(self.ls1.gamma, dtype)
            attention = replace(node, norm=norm_to_ir(self.norm1, dtype), layer_scale=scale)
        mlp: ir.Mlp | ir.Constant | None = None
        if isinstance(self.mlp, Constant):
            mlp = ir.Constant(read(self.mlp.bias, dtype))
        elif self.mlp is not None:
            mlp = self.mlp.to_ir(
                dtype, norm_to_ir(self.norm2, dtype), None if self.ls2 is None else read(self.ls2.gamma, dtype)
            )
        return replace(
            self.node,
            attention=attention,
            mlp=mlp,
            select=None if self.select is None else self.select.to_ir(dtype),
            gates=None if self.gates is None else self.gates.to_ir(dtype, self.norm1),
        )


def _scale_of(branch: ir.Attention | ir.Mlp | ir.Constant | None) -> LayerScale | None:
    scale = branch.layer_scale if isinstance(branch, ir.Attention | ir.Mlp) else None
    return None if scale is None else LayerScale(scale)


def _times(added: Tensor, used: Tensor | None, gate: Tensor | None) -> Tensor:
    """What a branch adds [B, N, C] where rows are `used` [B, N, 1] and it is switched on [B, 1, 1]."""
    if used is not None:
        added = added * used
    return added if gate is None else added * gate
