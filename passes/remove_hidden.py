"""Remove the FFN channels that a mask switches off.

Given   mask f in {0, 1}^F  and  y = (gelu(n W1^T + b1) * f) W2^T + b2
Result  the same y from F' = sum(f) channels:  W1 [F', C], b1 [F'], W2 [C, F'], b2 unchanged, no mask

Exact: where f_u = 0, hidden unit u meets column u of W2 as zero. Of a gated FFN a unit is a row of both its first layers.
Where a norm stands before W2, the unit enters it as zero and it goes on counting it (`slimc.passes.norms`). An FFN may lose
every channel; b2 is then all it adds, and RemoveEmptyBranches makes it a constant.

Refuses a mask that is not binary: such a mask is a scale, and FoldScales takes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slimc.errors import PassError
from slimc.ir import Linear, Mlp, Model, keep_outputs
from slimc.passes.norms import keep_channels
from slimc.passes.rewrite import map_branches, map_pool


@dataclass(frozen=True)
class RemoveMaskedHidden:
    """Slice every masked FFN down to the hidden units it keeps."""

    def __call__(self, model: Model) -> Model:
        """`model` without FFN masks; the same object where no FFN has one."""
        return map_pool(map_branches(model, mlp=_slim), mlp=_slim)


def _slim(mlp: Mlp) -> Mlp:
    if mlp.mask is None:
        return mlp
    if not np.isin(mlp.mask, (0, 1)).all():
        raise PassError("RemoveMaskedHidden", "an FFN mask is not binary", "run FoldScales first")
    kept = np.flatnonzero(mlp.mask)
    down = Linear(mlp.down.weight[:, kept], mlp.down.bias)
    gate = None if mlp.gate is None else keep_outputs(mlp.gate, kept)
    norm = keep_channels(mlp.inner_norm, kept)
    return replace(mlp, up=keep_outputs(mlp.up, kept), down=down, mask=None, gate=gate, inner_norm=norm)
