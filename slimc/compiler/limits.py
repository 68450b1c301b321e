"""What follows from what a network decided for a set of images: settled gates, capacities, MACs.

AdaViT decides for each image which branches, heads and tokens run. Over a calibration set that tells which gates never or
always are on, and how many patches a block needs; over any set it tells what an image costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from slimc import ir
from slimc.errors import OptionError
from slimc.ir import BoolArray, IndexArray
from slimc.ir.gate_usage import BlockUsage, Usage, patches_used
from slimc.passes.remove_settled_gates import Settled
from slimc.targets.count import branch_macs, classifier_macs, embedding_macs
from slimc.targets.target import Target

# A gather and a scatter a block cost about what 5 % of its rows do; a capacity that saves less is left out.
_WORTHWHILE = 0.95


@dataclass(frozen=True)
class Limits:
    """What a compiled network can do less than the checkpoint: an entry a block of settled gates and of capacities."""

    settled: tuple[Settled, ...]
    capacities: tuple[int | None, ...]

    def to_json(self) -> dict[str, Any]:
        """The limits as plain data."""
        settled = [
            {"attention": block.attention, "mlp": block.mlp, "heads": list(block.heads)} for block in self.settled
        ]
        return {"settled": settled, "capacities": list(self.capacities)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Limits:
        """The limits that `to_json` gave."""
        settled = tuple(Settled(b["attention"], b["mlp"], tuple(b["heads"])) for b in values["settled"])
        return Limits(settled, tuple(values["capacities"]))


def limits_of(usage: Usage, model: ir.Model, quantile: float) -> Limits:
    """The limits that `usage` suggests for `model`: capacities are the given quantile of the patches in use.

    Raises:
        OptionError: the quantile is not in (0, 1].
    """
    if not (math.isfinite(quantile) and 0 < quantile <= 1):
        raise OptionError(f"--capacity-quantile: {quantile} is not in (0, 1]")
    steps = list(zip(model.blocks, usage.blocks, strict=True))
    return Limits(
        settled=tuple(_settle(block, used) for block, used in steps),
        capacities=tuple(_capacity(block, used, model.prefix, quantile) for block, used in steps),
    )


def _settle(block: ir.Block, used: BlockUsage) -> Settled:
    if block.gates is None:
        return Settled()
    heads = _head_relevance(block, used)
    return Settled(
        attention=_agreed(used.attention),
        mlp=_agreed(used.mlp),
        heads=tuple(_agreed(used.heads[heads, head]) for head in range(_decisions(block.gates))),
    )


def _decisions(gates: ir.Gates) -> int:
    return 0 if gates.heads is None else int(gates.heads.weight.shape[0])


def _head_relevance(block: ir.Block, used: BlockUsage) -> BoolArray:
    """The images [n] on which the block's head decisions change anything."""
    gates_mlp = isinstance(block.mlp, ir.Mlp) and (
        block.mlp.input_gates is not None or block.mlp.unit_gates is not None
    )
    return used.runs if gates_mlp else used.attention


def _agreed(decisions: BoolArray) -> bool | None:
    """What all of the decisions are; none where they differ. Decisions that never mattered are off."""
    if not decisions.any():
        return False
    return True if decisions.all() else None


def _capacity(block: ir.Block, used: BlockUsage, prefix: int, quantile: float) -> int | None:
    patches = used.tokens.shape[1] - prefix
    if block.gates is None or block.gates.tokens is None or patches == 0:
        return None
    counts = patches_used(used, prefix)
    capacity = max(1, int(np.quantile(counts, quantile, method="higher")))
    return capacity if capacity <= _WORTHWHILE * patches else None


def exact_images(usage: Usage, model: ir.Model, limits: Limits) -> BoolArray:
    """The images [n] for which a network with `limits` decides as `model`, the network without, did."""
    exact = np.ones(len(usage.margin), bool)
    for block, used, settled, capacity in zip(
        model.blocks, usage.blocks, limits.settled, limits.capacities, strict=True
    ):
        if block.gates is None:
            continue
        for decisions, value in ((used.attention, settled.attention), (used.mlp, settled.mlp)):
            exact &= True if value is None else decisions == value
        relevant = _head_relevance(block, used)
        for head, value in enumerate(settled.heads):
            exact &= True if value is None else ~relevant | (used.heads[:, head] == value)
        if capacity is not None:
            exact &= patches_used(used, model.prefix) <= capacity
    return exact


def graph_decisions(usage: Usage, model: ir.Model, limits: Limits | None) -> dict[str, BoolArray]:
    """What the graph compiled from `model` under `limits` should decide, by the names of its values (`slimc.emit.gates`)."""
    decisions: dict[str, BoolArray] = {}
    for i, (block, used) in enumerate(zip(model.blocks, usage.blocks, strict=True)):
        if block.gates is None:
            continue
        columns = _open_decisions(block.gates, used, Settled() if limits is None else limits.settled[i])
        if columns:
            decisions[f"{block.name}.decided"] = np.stack(columns, axis=1)
        if block.gates.tokens is not None:
            decisions[f"{block.name}.tokens"] = used.tokens
    return decisions


def _open_decisions(gates: ir.Gates, used: BlockUsage, settled: Settled) -> list[BoolArray]:
    """The decisions that are not settled, in the order attention, FFN, heads."""
    branches = ((gates.attention, settled.attention, used.attention), (gates.mlp, settled.mlp, used.mlp))
    columns = [decided for policy, value, decided in branches if policy is not None and value is None]
    for head in range(_decisions(gates)):
        value = settled.heads[head] if settled.heads else None
        if value is None or (value is False and gates.off_heads == "value"):
            columns.append(used.heads[:, head])
    return columns


def executed_macs(model: ir.Model, usage: Usage, target: Target, *, conditional: bool) -> IndexArray:
    """MACs [n] that the compiled `model` executes on the images of `usage`, which it decides as the checkpoint does."""
    fixed = embedding_macs(model) + classifier_macs(model)
    macs = np.full(len(usage.margin), fixed, np.int64)
    for block, used, counts in zip(model.blocks, usage.blocks, branch_macs(model, target), strict=True):
        macs += counts.decisions
        switched = conditional and block.gates is not None
        for policy, runs, branch in (
            ("attention", used.attention, counts.attention),
            ("mlp", used.mlp, counts.mlp),
        ):
            skipped = switched and getattr(block.gates, policy) is not None
            macs += np.where(runs, branch, 0) if skipped else branch
    return macs


def needed_macs(model: ir.Model, usage: Usage) -> IndexArray:
    """MACs [n] that the decisions ask for, were everything that is off free: the figure of the paper."""
    macs = np.full(len(usage.margin), embedding_macs(model) + classifier_macs(model), np.int64)
    for block, used in zip(model.blocks, usage.blocks, strict=True):
        tokens, all_tokens = used.tokens.sum(1), used.tokens.shape[1]
        if isinstance(block.attention, ir.Attention):
            macs += np.where(used.attention, _attention_macs(block.attention, used, tokens, model.dim), 0)
        if isinstance(block.mlp, ir.Mlp):
            gated = block.gates is not None and block.gates.tokens_gate_mlp
            rows = tokens if gated else np.full(len(tokens), all_tokens)
            macs += np.where(used.mlp, rows * _mlp_row_macs(block.mlp, used), 0)
        if block.gates is not None:
            linears = (block.gates.attention, block.gates.mlp, block.gates.heads)
            macs += sum(linear.weight.size for linear in linears if linear is not None)
            macs += all_tokens * model.dim if block.gates.tokens is not None else 0
    return macs


def _attention_macs(attention: ir.Attention, used: BlockUsage, tokens: IndexArray, dim: int) -> IndexArray:
    macs = np.zeros(len(tokens), np.int64)
    for head in attention.heads:
        d_qk, d_v = head.query.weight.shape[0], head.value.weight.shape[0]
        cost = tokens * dim * 2 * (d_qk + d_v) + tokens**2 * (d_qk + d_v)
        macs += cost if head.gate is None else np.where(used.heads[:, head.gate], cost, 0)
    return macs


def _mlp_row_macs(mlp: ir.Mlp, used: BlockUsage) -> IndexArray:
    """MACs [n] of one row."""
    hidden, columns = mlp.up.weight.shape
    inputs, units = _open(mlp.input_gates, columns, used), _open(mlp.unit_gates, hidden, used)
    macs: IndexArray = inputs * units + units * mlp.down.weight.shape[0]
    return macs


def _open(numbers: IndexArray | None, count: int, used: BlockUsage) -> IndexArray:
    """How many of `count` channels are on [n]."""
    if numbers is None:
        return np.full(len(used.heads), count)
    always = int((numbers < 0).sum())
    gated: IndexArray = used.heads[:, numbers[numbers >= 0]].sum(1)
    return always + gated
