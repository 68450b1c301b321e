"""Absorb the constant queries of a latent pool into its keys, and mix rows before values are made of them.

    scores   q (n_j Wk^T)^T                  =  n_j (q Wk)^T              one channel a head: Wk [1, C], q = 1
    mixing   sum_j p_j (n_j Wv^T)            =  (sum_j p_j n_j) Wv^T      for one row instead of all

Given   a pool of H heads over N rows without key biases: 2 N C (d_qk + d_v) H multiply-accumulates, twice over
Result  the same features from 2 N C H of them, and C d_v H

Exact: the query does not depend on the image, and the rest is associativity. Refuses a mask, a scale and a key bias
(FoldScales, FoldBiases).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slimc.errors import PassError
from slimc.ir import LatentHead, LatentPool, Linear, Model
from slimc.passes.rewrite import map_pool


@dataclass(frozen=True)
class AbsorbLatents:
    """Leave one channel of queries and keys in every head of a latent pool."""

    def __call__(self, model: Model) -> Model:
        """`model` with an absorbed pool; the same object where it has none, or that is absorbed already."""
        return map_pool(model, _absorb)


def _absorb(pool: LatentPool) -> LatentPool:
    if pool.absorbed:
        return pool
    if pool.scale != 1.0 or pool.masked:
        raise PassError("AbsorbLatents", "the pool has a scale or a mask", "run FoldScales first")
    if any(head.key.bias is not None for head in pool.heads):
        raise PassError("AbsorbLatents", "the pool's keys have a bias", "run FoldBiases first")
    return replace(pool, heads=tuple(_head(head) for head in pool.heads if len(head.value.weight)), absorbed=True)


def _head(head: LatentHead) -> LatentHead:
    weight = (head.query.astype(np.float64) @ head.key.weight).astype(head.key.weight.dtype)
    return replace(head, query=np.ones(1, head.query.dtype), key=Linear(weight[None]))
