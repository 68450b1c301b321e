"""The FFN branch: computed for the rows that it reads, once for all of those that count as zero."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from slimc import ir
from slimc.pytorch.layers import (
    NOTHING,
    DType,
    Linear,
    activate,
    hold,
    norm_of,
    norm_to_ir,
    normalised,
)
from slimc.pytorch.rows import Rows


class Mlp(nn.Module):
    """What an FFN adds to `rows` rows of a stream of `dim` channels, from those of them that it reads.

    `fc1.weight` is `gate` where there is one, then `up`; `fc2.weight` is `down`.
    """

    mask: Tensor | None
    token_mask: Tensor | None
    input_gates: Tensor | None
    unit_gates: Tensor | None

    def __init__(self, node: ir.Mlp, rows: int, dim: int) -> None:
        super().__init__()
        self.node = replace(node, up=NOTHING, down=NOTHING, gate=None, inner_norm=None, layer_scale=None)
        self.hidden, self.gated = len(node.up.weight), node.gate is not None
        self.rows, self.inputs = Rows(node.rows, rows), Rows(node.inputs, dim, axis=-1)
        self.fc1 = Linear([node.up] if node.gate is None else [node.gate, node.up])
        self.norm, self.fc2 = norm_of(node.inner_norm), Linear([node.down])
        token_mask = node.token_mask
        if token_mask is not None:
            token_mask = (token_mask if node.rows is None else token_mask[node.rows])[:, None]
        hold(self, mask=node.mask, token_mask=token_mask, input_gates=node.input_gates, unit_gates=node.unit_gates)

    def forward(self, n: Tensor, on: Tensor | None = None) -> Tensor:
        """What is added to all rows [B, N, C], from the normalised `rows` [B, rows, C]; `on` as for the attention."""
        if self.token_mask is not None:
            n = n * self.token_mask
        added = self.rows.put(
            self._run(n, on), None if self.rows.all else self._run(n.new_zeros((1, 1, n.shape[2])), None)[0, 0]
        )
        return added if self.node.residual_scale == 1.0 else added * self.node.residual_scale

    def _run(self, n: Tensor, on: Tensor | None) -> Tensor:
        hidden = self.units(_gated(self.inputs(n), self.input_gates, on))
        added: Tensor = self.fc2(_gated(hidden, self.unit_gates, on))
        return added

    def units(self, n: Tensor) -> Tensor:
        """The hidden units [..., F] of the channels `n` that are read."""
        hidden: Tensor = self.fc1(n)
        if self.gated:
            gate, up = hidden.chunk(2, -1)
            hidden = activate(self.node.activation, gate) * up
        else:
            hidden = activate(self.node.activation, hidden)
        if self.mask is None:
            return normalised(self.norm, hidden)
        hidden = hidden * self.mask
        return hidden if self.norm is None else self.norm(hidden) * self.mask

    def to_ir(self, dtype: DType, norm: ir.Norm, layer_scale: ir.FloatArray | None = None) -> ir.Mlp:
        """The node; its norm and its layer scale are its owner's."""
        *gate, up = self.fc1.to_ir(dtype)
        return replace(
            self.node,
            norm=norm,
            up=up,
            down=self.fc2.to_ir(dtype)[0],
            gate=gate[0] if gate else None,
            inner_norm=norm_to_ir(self.norm, dtype),
            layer_scale=layer_scale,
        )


def _gated(x: Tensor, numbers: Tensor | None, on: Tensor | None) -> Tensor:
    """`x` [B, N, channels] times the decisions `numbers` [channels] of `on` [B, decisions]."""
    return x if numbers is None or on is None else x * on[:, None, numbers]
