"""What is left of a network, layer by layer: the facts behind tables and pictures, stored in the model's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slimc import ir
from slimc.targets.count import block_macs, selection_macs
from slimc.targets.plan import BlockPlan, plan_model
from slimc.targets.target import Target


@dataclass(frozen=True)
class LayerStructure:
    """One block. `heads` are the channels each original head keeps; `groups` the (heads, width) that are computed.

    `tokens` and `tokens_out` count the rows entering and leaving the attention branch, `keys` the rows that attention
    sees, `ghosts` the masked ones that stay in its denominator. `patches` are the patches entering, by grid position;
    none where the image decides. `tokens_before` count the rows before the block's selection of tokens, which costs
    `scorer_macs` MACs; they are `tokens` and 0 where it selects none.
    """

    name: str
    heads: tuple[int, ...]
    groups: tuple[tuple[int, int], ...]
    hidden: int
    tokens: int
    tokens_out: int
    keys: int
    ghosts: int
    macs_dense: int
    macs: int
    patches: tuple[int, ...]
    tokens_before: int
    scorer_macs: int


@dataclass(frozen=True)
class Structure:
    """A whole network: its geometry and one entry a block; `head_dim` and `hidden` are the dense widths."""

    image: tuple[int, int]
    grid: tuple[int, int]
    dim: int
    prefix: int
    head_dim: int
    hidden: int
    layers: tuple[LayerStructure, ...]

    @property
    def selecting(self) -> tuple[LayerStructure, ...]:
        """The layers that select tokens."""
        return tuple(layer for layer in self.layers if layer.scorer_macs)


def describe(model: ir.Model, masked: ir.Model, dense: ir.Model, target: Target) -> Structure:
    """The structure of `model`, which was compiled for `target` from `masked`; `dense` has no masks."""
    patches = _entering_patches(model)
    plans, macs, macs_dense = plan_model(model, target), block_macs(model, target), block_macs(dense, target)
    scorers = selection_macs(model)
    layers = tuple(
        _layer(block, masked.blocks[i], plans[i], (macs_dense[i], macs[i], scorers[i]), patches[i])
        for i, block in enumerate(model.blocks)
    )
    return Structure(
        image=model.image,
        grid=model.grid,
        dim=model.dim,
        prefix=model.prefix,
        head_dim=max((w for block in dense.blocks for w in kept_channels(block)), default=0),
        hidden=max((_hidden(block) for block in dense.blocks), default=0),
        layers=layers,
    )


def _layer(
    block: ir.Block,
    masked: ir.Block,
    plan: BlockPlan,
    macs: tuple[int, int, int],
    patches: tuple[int, ...],
) -> LayerStructure:
    groups: tuple[tuple[int, int], ...] = ()
    keys, ghosts = 0, 0
    if plan.attention is not None:
        groups = tuple((len(group), int(group[0].value.weight.shape[0])) for group in plan.attention.groups)
        keys, ghosts = len(plan.attention.key_rows), plan.attention.node.ghosts
    return LayerStructure(
        name=block.name,
        heads=kept_channels(masked) if groups else tuple(0 for _ in kept_channels(masked)),
        groups=groups,
        hidden=_hidden(block),
        tokens=plan.rows.entering,
        tokens_out=plan.rows.leaving,
        keys=keys,
        ghosts=ghosts,
        macs_dense=macs[0],
        macs=macs[1],
        patches=patches,
        tokens_before=plan.rows.before,
        scorer_macs=macs[2],
    )


def kept_channels(block: ir.Block) -> tuple[int, ...]:
    """The channels that every head of `block` keeps under its mask."""
    if not isinstance(block.attention, ir.Attention):
        return ()
    heads = block.attention.heads
    return tuple(int(h.value.weight.shape[0] if h.mask is None else np.count_nonzero(h.mask)) for h in heads)


def _hidden(block: ir.Block) -> int:
    return int(block.mlp.up.weight.shape[0]) if isinstance(block.mlp, ir.Mlp) else 0


def _entering_patches(model: ir.Model) -> list[tuple[int, ...]]:
    """Grid positions of the patches that enter every block; none from the first selection on."""
    patches = model.embedding.patch.patches
    positions = np.arange(model.grid[0] * model.grid[1]) if patches is None else patches
    stream = np.concatenate([np.full(model.prefix, -1), positions])
    entering: list[tuple[int, ...]] = []
    for block in model.blocks:
        if block.select is not None:
            return entering + [()] * (len(model.blocks) - len(entering))
        entering.append(tuple(sorted(int(position) for position in stream if position >= 0)))
        stream = stream if block.live is None else stream[block.live]
    return entering


def to_json(structure: Structure) -> str:
    """`structure` as JSON text."""
    return json.dumps(asdict(structure), separators=(",", ":"))


def from_json(text: str) -> Structure:
    """The structure that `to_json` wrote.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    values: Mapping[str, Any] = json.loads(text)
    layers = tuple(
        LayerStructure(
            **{
                **layer,
                "heads": tuple(layer["heads"]),
                "groups": tuple((int(n), int(width)) for n, width in layer["groups"]),
                "patches": tuple(layer["patches"]),
            }
        )
        for layer in values["layers"]
    )
    rest: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key != "layers"
    }
    return Structure(**rest, layers=layers)
