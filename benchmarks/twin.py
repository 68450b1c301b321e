"""A dense network of about as many MACs as masks leave, all blocks alike: what a ragged one is compared with."""

from __future__ import annotations

from dataclasses import replace

from slimc import ir
from slimc.targets.count import count_macs
from slimc.targets.target import find_target


def uniform_twin(dense: ir.Model, macs: int) -> ir.Model:
    """The first channels of every head and FFN of `dense`, in every block as many, so that about `macs` are left."""
    generic = find_target("generic")
    heads = dense.blocks[0].attention.heads  # type: ignore[union-attr]
    full = len(heads[0].query.weight)
    hidden = len(dense.blocks[0].mlp.up.weight)  # type: ignore[union-attr]
    width = max(8, round(full * macs / count_macs(dense, generic) / 8) * 8)
    none, one = (count_macs(_cut(dense, width, units), generic) for units in (0, 1))
    return _cut(dense, width, min(hidden, max(64, round((macs - none) / (one - none) / 64) * 64)))


def _cut(dense: ir.Model, width: int, hidden: int) -> ir.Model:
    def first(linear: ir.Linear, count: int) -> ir.Linear:
        return ir.Linear(linear.weight[:count], None if linear.bias is None else linear.bias[:count])

    blocks = []
    for block in dense.blocks:
        attention, mlp = block.attention, block.mlp
        assert isinstance(attention, ir.Attention)
        assert isinstance(mlp, ir.Mlp)
        heads = tuple(
            replace(
                head,
                query=first(head.query, width),
                key=first(head.key, width),
                value=first(head.value, width),
                output=head.output[:, :width],
            )
            for head in attention.heads
        )
        mlp = replace(mlp, up=first(mlp.up, hidden), down=replace(mlp.down, weight=mlp.down.weight[:, :hidden]))
        blocks.append(replace(block, attention=replace(attention, heads=heads), mlp=mlp))
    return replace(dense, blocks=tuple(blocks))
