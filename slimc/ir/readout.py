"""What is read from the residual stream: logits, pooled features, rows of the last block or of any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from slimc.ir.layers import FloatArray, IndexArray, Linear, Norm

if TYPE_CHECKING:
    from slimc.ir.nodes import Mlp

PoolKind = Literal["avg", "max", "avgmax", "token+avg"]


@dataclass(frozen=True, eq=False)
class Pool:
    """Features [C] from the `rows` of the stream: their mean, their maximum, or the mean of both, channel by channel.

    "token+avg" is row 0 and, behind it, the mean of the others: features [2 C].
    """

    kind: PoolKind
    rows: IndexArray


@dataclass(frozen=True, eq=False)
class LatentHead:
    """One head of a `LatentPool`: its query q [d_qk] is a constant; k, v = n Wk^T, n Wv^T; it adds (a v) output^T.

    `mask` [d_qk] multiplies q and k, `value_mask` [d_v] multiplies v.
    """

    query: FloatArray
    key: Linear
    value: Linear
    output: FloatArray
    mask: FloatArray | None = None
    value_mask: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class LatentPool:
    """Attention pooling by a learnt query (timm's AttentionPoolLatent): features [C].

    With n the `rows` of the stream: y = sum over heads of softmax(q k^T scale) v output^T + output_bias, then y + mlp(y)
    where there is an `mlp`. With `absorbed`, values are mixed before they are projected: (a n) Wv^T.
    """

    heads: tuple[LatentHead, ...]
    output_bias: FloatArray | None
    scale: float
    rows: IndexArray
    mlp: Mlp | None = None
    absorbed: bool = False

    @property
    def masked(self) -> bool:
        """Whether a mask stands on the channels of any head."""
        return any(head.mask is not None or head.value_mask is not None for head in self.heads)


@dataclass(frozen=True, eq=False)
class Classifier:
    """Behind the last block: n = norm(x), features of n, and logits of the features.

    Without a pool, features_i = pre_logits(pooled_norm(n[rows[i]])) and logits = scale * sum over i of heads[i](features_i),
    plus the maximum over the patch rows of auxiliary(n), class by class; the features are the mean of the features_i.
    With a `pool`, features = pre_logits(pooled_norm(pool(n))), and the only head gives the logits.

    `pre_logits` is a linear layer, then tanh. There may be no head: then there are no logits. With neither rows nor a pool
    there are no features either.
    """

    norm: Norm | None
    rows: tuple[int, ...]
    heads: tuple[Linear, ...]
    pre_logits: Linear | None = None
    scale: float = 1.0
    auxiliary: Linear | None = None
    pool: Pool | LatentPool | None = None
    pooled_norm: Norm | None = None


OutputKind = Literal["logits", "features", "tokens", "blocks"]


@dataclass(frozen=True, eq=False)
class Output:
    """One output of a model, float32.

    logits      [B, classes]
    features    [B, F]: what the head reads
    tokens      the patch rows behind the last norm
    blocks      the patch rows behind block `block`, as they are

    Patches are `rows` of the stream there, in the order of the grid: [B, patches, C], or as "NCHW" [B, C, height, width].
    """

    kind: OutputKind
    block: int | None = None
    rows: IndexArray | None = None
    layout: Literal["NC", "NLC", "NCHW"] = "NC"

    @property
    def name(self) -> str:
        """As it is asked for, and as the graph calls it: ``logits``, ``tokens``, ``blocks.5``, ``tokens:nchw``."""
        layout = ":nchw" if self.layout == "NCHW" else ""
        return f"{self.kind}{'' if self.block is None else f'.{self.block}'}{layout}"


LOGITS = Output("logits")
