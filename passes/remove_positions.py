"""Remove masked patch positions from attention and FFN: ghosts in the denominator.

A masked token's normalised row is zero, so that all n of them among N have the same key bk and the same value bv: one
row that counts n times. Once FoldBiases has taken the biases away, its key and its value are zero: it adds e^0 = 1 to the
denominator of every softmax and nothing to the numerator,

    (sum over all j of e^{s_ij} v_j) / (sum over all j of e^{s_ij})
        = (sum over kept j of e^{s_ij} v_j) / (sum over kept j of e^{s_ij} + n)

Given   token_mask in {0, 1}^N on a branch
Result  rows = the kept positions, ghosts + n (attention only), no mask

The stream keeps all its rows here; RemoveDeadTokens drops those that nobody reads. A masked token that is still read
later keeps its row: its query is the query bias, and its FFN adds a constant vector.

Keys that are turned by their positions (`ir.Rotation`) are alike only where they are zero: a zero row's key is its bias.

Refuses a mask that is not binary, and one over turned keys with a bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slimc.errors import PassError
from slimc.ir import Attention, FloatArray, IndexArray, Mlp, Model
from slimc.ir.interpret.attention import turns_key_bias
from slimc.passes.rewrite import map_branches


@dataclass(frozen=True)
class RemoveMaskedPositions:
    """Turn token masks into row sets and ghosts."""

    def __call__(self, model: Model) -> Model:
        """`model` without token masks; the same object where there is none."""
        return map_branches(model, attention=_attention, mlp=_mlp)


def _attention(attention: Attention) -> Attention:
    if attention.token_mask is None:
        return attention
    rows, gone = _kept(attention.token_mask)
    if gone and turns_key_bias(attention):
        raise PassError("RemoveMaskedPositions", "keys have a bias that is turned", "keep all patches of this network")
    return replace(attention, token_mask=None, rows=rows, ghosts=attention.ghosts + gone)


def _mlp(mlp: Mlp) -> Mlp:
    if mlp.token_mask is None:
        return mlp
    return replace(mlp, token_mask=None, rows=_kept(mlp.token_mask)[0])


def _kept(mask: FloatArray) -> tuple[IndexArray | None, int]:
    """Positions where `mask` is one (none for all of them) and the number where it is zero."""
    if not np.isin(mask, (0, 1)).all():
        raise PassError(
            "RemoveMaskedPositions", "a token mask is not binary", "only a searched and budgeted mask can go"
        )
    kept = np.flatnonzero(mask).astype(np.int64)
    return (None if len(kept) == len(mask) else kept), len(mask) - len(kept)
