"""Remove the head channels that a mask switches off.

Given   mask m in {0, 1}^d and, per head,  q = (n Wq^T + bq) * m,  k and v likewise,  y = softmax(q k^T s) v Wo^T
Result  the same y from d' = sum(m) channels:  Wq, Wk, Wv [d', C], bq, bk, bv [d'], Wo [C, d'], no mask

Exact: where m_c = 0, channel c adds q_c k_c = 0 to every score, and v_c = 0 meets column c of Wo. The softmax scale stays
that of the original d: it is a field of the attention, not a function of the width. A head may lose every channel; it then
adds nothing, and RemoveEmptyBranches drops it.

Refuses a mask that is not binary: such a mask is a scale, and FoldScales takes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slimc.errors import PassError
from slimc.ir import Attention, Head, IndexArray, Linear, Model
from slimc.passes.rewrite import map_branches


@dataclass(frozen=True)
class RemoveMaskedChannels:
    """Slice every masked head down to the channels it keeps."""

    def __call__(self, model: Model) -> Model:
        """`model` without head masks; the same object where no head has one."""
        return map_branches(model, attention=_slim)


def _slim(attention: Attention) -> Attention:
    if all(head.mask is None for head in attention.heads):
        return attention
    return replace(attention, heads=tuple(_keep(head) for head in attention.heads))


def _keep(head: Head) -> Head:
    if head.mask is None:
        return head
    if not np.isin(head.mask, (0, 1)).all():
        raise PassError("RemoveMaskedChannels", "a head mask is not binary", "run FoldScales first")
    kept = np.flatnonzero(head.mask)
    return Head(
        query=_rows(head.query, kept),
        key=_rows(head.key, kept),
        value=_rows(head.value, kept),
        output=head.output[:, kept],
    )


def _rows(linear: Linear, kept: IndexArray) -> Linear:
    return Linear(linear.weight[kept], None if linear.bias is None else linear.bias[kept])
