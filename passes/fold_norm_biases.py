"""Fold the biases behind a LayerNorm into the channel that the normalised row has to spare.

A normalised row sums to zero before its weight and bias, so one of its channels follows from the others and need not be
read. It may be a constant 1 instead, whose column in every linear layer behind the norm is that layer's bias:

    n = gamma x^ + beta,  sum_c x^_c = 0,  so for any k  x^_k = - sum over c != k of x^_c  and

    W n + b  =  sum over c != k of (W_c gamma_c - W_k gamma_k) x^_c  +  (W beta + b) 1

Given   norm (gamma, beta); linear layers (W, b) that read n
Result  norm (1 but 0 at k, 0 but 1 at k); linear layers without biases, of the same shapes

Exact. A product without a bias need not spread one over its rows first. k is the channel whose columns are shortest: the
least is added to the others. Left as they are: branches with biases nowhere, and those to which some rows are zero rows of
n (masked or absent rows, ghosts), which this form cannot say; branches whose channels gates choose; and branches behind an
RMSNorm, whose rows sum to anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from slimc.ir import Attention, Head, LayerNorm, Linear, Mlp, Model
from slimc.passes.rewrite import map_branches, with_blocks


@dataclass(frozen=True)
class FoldNormBiases:
    """Take the biases from the first linear layers of the branches."""

    def __call__(self, model: Model) -> Model:
        """`model` with fewer biases; the same object where there was none to fold."""
        folded = map_branches(model, attention=_attention, mlp=_mlp)
        steps = zip(model.blocks, folded.blocks, strict=True)
        return with_blocks(model, tuple(old if old.gates is not None else new for old, new in steps))


def _attention(attention: Attention) -> Attention:
    linears = [linear for head in attention.heads for linear in (head.query, head.key, head.value)]
    masked = attention.token_mask is not None or attention.masked
    if masked or attention.rows is not None or attention.ghosts or not _biased(linears):
        return attention
    before = attention.norm
    if not isinstance(before, LayerNorm):
        return attention
    norm, channel = _free_channel(before, linears)

    def fold(linear: Linear) -> Linear:
        return _fold(linear, before, channel)

    heads = tuple(_map(head, fold) for head in attention.heads)
    return replace(attention, norm=norm, heads=heads)


def _map(head: Head, fold: Callable[[Linear], Linear]) -> Head:
    return replace(head, query=fold(head.query), key=fold(head.key), value=fold(head.value))


def _mlp(mlp: Mlp) -> Mlp:
    linears = [mlp.up] if mlp.gate is None else [mlp.up, mlp.gate]
    before = mlp.norm
    if mlp.token_mask is not None or mlp.rows is not None or mlp.inputs is not None or not _biased(linears):
        return mlp
    if not isinstance(before, LayerNorm):
        return mlp
    norm, channel = _free_channel(before, linears)
    gate = None if mlp.gate is None else _fold(mlp.gate, before, channel)
    return replace(mlp, norm=norm, up=_fold(mlp.up, before, channel), gate=gate)


def _biased(linears: Sequence[Linear]) -> bool:
    return any(linear.bias is not None for linear in linears)


def _free_channel(norm: LayerNorm, linears: Sequence[Linear]) -> tuple[LayerNorm, int]:
    """The channel that costs least to do without, and the norm that gives 1 there."""
    lengths = sum(np.square(linear.weight.astype(np.float64)).sum(0) for linear in linears) * np.square(norm.weight)
    channel = int(np.argmin(lengths))
    one = np.zeros_like(norm.weight)
    one[channel] = 1.0
    return LayerNorm(1.0 - one, one, norm.eps), channel


def _fold(linear: Linear, norm: LayerNorm, channel: int) -> Linear:
    """`linear` behind the norm that has its constant in `channel`."""
    weight = linear.weight.astype(np.float64)
    folded = weight * norm.weight - weight[:, [channel]] * norm.weight[channel]
    folded[:, channel] = weight @ norm.bias.astype(np.float64) + (0.0 if linear.bias is None else linear.bias)
    return Linear(folded.astype(linear.weight.dtype))
