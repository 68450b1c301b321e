"""Pad the hidden units of FFNs to a multiple that a target's kernels need.

    down(act(up(n)))  =  [h, act(0)] [W2, 0]^T        further rows of up are zero, further columns of down too

Exact: what a further unit is meets a column of zeros. Tensor cores read rows of 16 bytes: eight numbers in half precision.
Where masks leave another number of units, libraries take kernels of older architectures; on an H100 the products of a slim
DeiT-S take twice the time without padding (benchmarks/results/gpu/findings.md).

A norm in front of the last layer goes on counting the units that there were (`slimc.passes.norms`). Left as they are: FFNs
whose units obey gates, and those without units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slimc.ir import Linear, Mlp, Model, pad_outputs
from slimc.passes.norms import place_channels
from slimc.passes.rewrite import map_branches, map_pool
from slimc.targets.target import Target


@dataclass(frozen=True)
class AlignHidden:
    """Give every FFN a number of hidden units that is a multiple of the target's."""

    target: Target

    def __call__(self, model: Model) -> Model:
        """`model` with aligned FFNs; the same object where all are."""
        return map_pool(map_branches(model, mlp=self._aligned), mlp=self._aligned)

    def _aligned(self, mlp: Mlp) -> Mlp:
        width = len(mlp.up.weight)
        missing = -width % self.target.width_multiple
        if missing == 0 or width == 0 or mlp.unit_gates is not None or mlp.mask is not None:
            return mlp
        down = Linear(np.pad(mlp.down.weight, ((0, 0), (0, missing))), mlp.down.bias)
        return replace(
            mlp,
            up=pad_outputs(mlp.up, width + missing),
            gate=None if mlp.gate is None else pad_outputs(mlp.gate, width + missing),
            down=down,
            inner_norm=place_channels(mlp.inner_norm, np.arange(width), width + missing),
        )
