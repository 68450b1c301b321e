"""Remove the gates whose decision a calibration set settles.

    branch never added         gone, with its policy                    branch always added      its policy gone
    head never on              gone: n Wq, Wk, Wv, Wo of that head, the FFN's input columns or hidden units that obey it
    head always on             its gate gone, its policy row too

A head that is off adds zero, and the FFN columns (units) that obey it meet zeros, so removing them is exact for every
image that decides as the calibration set did; a decision that varied stays. Shapes: H' heads, up [F', C'], down [C, F'].

A head that passes its values on when it is off (`off_heads` "value") is not removed when it never is on: it keeps its gate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slimc.errors import PassError
from slimc.ir import Attention, Block, Gates, IndexArray, Linear, Mlp, Model, keep_outputs
from slimc.passes.rewrite import with_blocks


@dataclass(frozen=True)
class Settled:
    """What one block always (True) or never (False) decided; None where it varied. `heads` has an entry a decision."""

    attention: bool | None = None
    mlp: bool | None = None
    heads: tuple[bool | None, ...] = ()


@dataclass(frozen=True)
class RemoveSettledGates:
    """Take out what is never used, and the gates of what is always used: an entry of `settled` a block."""

    settled: tuple[Settled, ...]

    def __call__(self, model: Model) -> Model:
        """`model` without settled gates; the same object where nothing is settled."""
        if len(self.settled) != len(model.blocks):
            raise PassError("RemoveSettledGates", f"{len(self.settled)} entries for {len(model.blocks)} blocks")
        return with_blocks(model, tuple(map(_settle, model.blocks, self.settled)))


def _settle(block: Block, settled: Settled) -> Block:
    if block.gates is None:
        return block
    block = _settle_branches(block, block.gates, settled)
    assert block.gates is not None
    return _settle_heads(block, block.gates, settled.heads)


def _settle_branches(block: Block, gates: Gates, settled: Settled) -> Block:
    if gates.attention is not None and settled.attention is not None:
        gates = replace(gates, attention=None)
        block = replace(block, gates=gates, attention=block.attention if settled.attention else None)
    if gates.mlp is not None and settled.mlp is not None:
        block = replace(block, gates=replace(gates, mlp=None), mlp=block.mlp if settled.mlp else None)
    return block


def _settle_heads(block: Block, gates: Gates, settled: tuple[bool | None, ...]) -> Block:
    if gates.heads is None:
        return block
    count = gates.heads.weight.shape[0]
    if len(settled) != count:
        raise PassError("RemoveSettledGates", f"{block.name}: {len(settled)} entries for {count} head decisions")
    never = {i for i, on in enumerate(settled) if on is False and gates.off_heads == "zero"}
    always = {i for i, on in enumerate(settled) if on is True}
    if not never and not always:
        return block
    kept = np.array([i for i in range(count) if i not in never | always], np.int64)
    numbers = np.full(count + 1, -1)
    numbers[kept] = np.arange(len(kept))
    attention, mlp = block.attention, block.mlp
    if isinstance(attention, Attention):
        attention = _without_heads(attention, never, numbers)
    if isinstance(mlp, Mlp):
        mlp = _without_units(_without_inputs(mlp, never, numbers), never, numbers)
    return replace(block, attention=attention, mlp=mlp, gates=replace(gates, heads=_rows(gates.heads, kept)))


def _rows(linear: Linear, kept: IndexArray) -> Linear | None:
    if len(kept) == 0:
        return None
    return keep_outputs(linear, kept)


def _without_heads(attention: Attention, never: set[int], numbers: IndexArray) -> Attention:
    heads = []
    for head in attention.heads:
        if head.gate is None:
            heads.append(head)
        elif head.gate not in never:
            number = int(numbers[head.gate])
            heads.append(replace(head, gate=None if number < 0 else number))
    return replace(attention, heads=tuple(heads))


def _without_inputs(mlp: Mlp, never: set[int], numbers: IndexArray) -> Mlp:
    if mlp.input_gates is None:
        return mlp
    kept = np.flatnonzero(~np.isin(mlp.input_gates, sorted(never)))
    inputs = np.arange(mlp.up.weight.shape[1]) if mlp.inputs is None else mlp.inputs
    return replace(
        mlp,
        up=Linear(mlp.up.weight[:, kept], mlp.up.bias),
        inputs=mlp.inputs if len(kept) == len(inputs) else inputs[kept],
        input_gates=_renumbered(mlp.input_gates[kept], numbers),
    )


def _without_units(mlp: Mlp, never: set[int], numbers: IndexArray) -> Mlp:
    if mlp.unit_gates is None:
        return mlp
    kept = np.flatnonzero(~np.isin(mlp.unit_gates, sorted(never)))
    return replace(
        mlp,
        up=keep_outputs(mlp.up, kept),
        down=Linear(mlp.down.weight[:, kept], mlp.down.bias),
        mask=None if mlp.mask is None else mlp.mask[kept],
        unit_gates=_renumbered(mlp.unit_gates[kept], numbers),
    )


def _renumbered(gates: IndexArray, numbers: IndexArray) -> IndexArray | None:
    """`gates` by their new numbers; the last entry of `numbers` stands for -1."""
    renumbered: IndexArray = numbers[gates]
    return None if (renumbered < 0).all() else renumbered
