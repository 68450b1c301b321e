"""Remove the head channels that a mask switches off.

Given   mask m in {0, 1}^d and, per head,  q = (n Wq^T + bq) * m,  k and v likewise,  y = softmax(q k^T s) v Wo^T
Result  the same y from d' = sum(m) channels:  Wq, Wk, Wv [d', C], bq, bk, bv [d'], Wo [C, d'], no mask

Exact: where m_c = 0, channel c adds q_c k_c = 0 to every score, and v_c = 0 meets column c of Wo. The softmax scale stays
that of the original d: it is a field of the attention, not a function of the width. A head may lose every channel; it then
adds nothing, and RemoveEmptyBranches drops it.

A rotation mixes channel c with c + d / 2, so channels of q and k leave in pairs: where one of a pair is on, both stay, and
the mask of what stays is left to FoldScales. Values are not turned: they leave alone. Where a norm follows the heads'
outputs, v_c = 0 goes into it and its column of Wo meets the mask once more; the norm goes on counting it
(`slimc.passes.norms`).

Refuses a mask that is not binary: such a mask is a scale, and FoldScales takes it. Refuses a mask of q and k in front of
their norm, which makes something else of zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slimc.errors import PassError
from slimc.ir import Attention, FloatArray, Head, IndexArray, LatentHead, LatentPool, Model, Rotation, keep_outputs
from slimc.passes.norms import keep_channels
from slimc.passes.rewrite import map_branches, map_pool


@dataclass(frozen=True)
class RemoveMaskedChannels:
    """Slice every masked head down to the channels it keeps."""

    def __call__(self, model: Model) -> Model:
        """`model` without head masks; the same object where no head has one."""
        return map_pool(map_branches(model, attention=_slim), _slim_pool)


def _slim(attention: Attention) -> Attention:
    if not attention.masked:
        return attention
    if attention.normed and any(head.mask is not None for head in attention.heads):
        raise PassError("RemoveMaskedChannels", "a mask stands before the norm of queries and keys", "mask values only")
    ends = np.cumsum([0, *(len(head.value.weight) for head in attention.heads)])
    kept = [
        _kept(head.value_mask, len(head.value.weight)) + start
        for head, start in zip(attention.heads, ends[:-1], strict=True)
    ]
    return replace(
        attention,
        heads=tuple(_keep(head) for head in attention.heads),
        output_norm=keep_channels(attention.output_norm, np.concatenate(kept)) if kept else attention.output_norm,
    )


def _keep(head: Head) -> Head:
    if head.mask is not None:
        kept = _kept(head.mask, len(head.mask))
        rotation, rest = head.rotation, None
        if rotation is not None:
            alive = head.mask.reshape(2, -1).any(axis=0)
            kept = np.flatnonzero(np.tile(alive, 2))
            rotation = Rotation(rotation.cos[:, alive], rotation.sin[:, alive])
            rest = None if head.mask[kept].all() else head.mask[kept]
        head = replace(
            head, query=keep_outputs(head.query, kept), key=keep_outputs(head.key, kept), mask=rest, rotation=rotation
        )
    if head.value_mask is not None:
        kept = _kept(head.value_mask, len(head.value_mask))
        head = replace(head, value=keep_outputs(head.value, kept), output=head.output[:, kept], value_mask=None)
    return head


def _slim_pool(pool: LatentPool) -> LatentPool:
    if not pool.masked:
        return pool
    return replace(pool, heads=tuple(map(_keep_latent, pool.heads)))


def _keep_latent(head: LatentHead) -> LatentHead:
    asked = _kept(head.mask, len(head.query))
    values = _kept(head.value_mask, len(head.value.weight))
    return LatentHead(
        head.query[asked], keep_outputs(head.key, asked), keep_outputs(head.value, values), head.output[:, values]
    )


def _kept(mask: FloatArray | None, count: int) -> IndexArray:
    """The channels of `count` that `mask` keeps."""
    if mask is None:
        return np.arange(count)
    if not np.isin(mask, (0, 1)).all():
        raise PassError("RemoveMaskedChannels", "a head mask is not binary", "run FoldScales first")
    return np.flatnonzero(mask)
