"""What the counts of blocks and of the readout share."""

from __future__ import annotations

from collections.abc import Sequence

from slimc import ir


def mlp_macs(mlp: ir.Mlp) -> int:
    """Multiply-accumulates of an FFN for one row."""
    gate = 0 if mlp.gate is None else mlp.gate.weight.size
    return int(mlp.up.weight.size + gate + mlp.down.weight.size)


def mlp_params(mlp: ir.Mlp) -> int:
    """Parameters of an FFN: its arrays without masks; a gate and what it multiplies have one product."""
    masks = size_of(mlp.token_mask) + size_of(mlp.mask)
    return params_of(mlp) - masks + (0 if mlp.gate is None else zero_biases([mlp.gate, mlp.up]))


def zero_biases(linears: Sequence[ir.Linear]) -> int:
    """Entries of the bias of one product of `linears` that stand for no bias."""
    missing = sum(len(linear.weight) for linear in linears if linear.bias is None)
    return missing if any(linear.bias is not None for linear in linears) else 0


def params_of(node: object) -> int:
    """Entries of every array below `node`."""
    return sum(array.size for array in ir.arrays(node))


def size_of(array: ir.FloatArray | None) -> int:
    """Entries of an array, where there is one."""
    return 0 if array is None else int(array.size)
