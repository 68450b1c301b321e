"""The layers that nodes are made of: linear maps, normalisations, rotations and activations, over NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IndexArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]
"""What stands between the linear layers of an FFN.

gelu         x Phi(x), by the error function (Hendrycks and Gimpel, arXiv 1606.08415)
gelu_tanh    x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, the approximation of the same paper
quick_gelu   x sigmoid(1.702 x), the other one, which CLIP has
silu         x sigmoid(x)
relu         max(x, 0)
"""


@dataclass(frozen=True, eq=False)
class Linear:
    """y = x weight^T + bias, with weight [out, in] and bias [out] or none."""

    weight: FloatArray
    bias: FloatArray | None = None


def keep_outputs(linear: Linear, kept: IndexArray | slice) -> Linear:
    """`linear` with those of its outputs that `kept` names, in that order."""
    return Linear(linear.weight[kept], None if linear.bias is None else linear.bias[kept])


def pad_outputs(linear: Linear, width: int) -> Linear:
    """`linear` with outputs of zero behind its own, `width` in all; itself where it has as many."""
    missing = width - len(linear.weight)
    if missing == 0:
        return linear
    bias: FloatArray | None = None if linear.bias is None else np.pad(linear.bias, (0, missing))
    return Linear(np.pad(linear.weight, ((0, missing), (0, 0))), bias)


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """Normalisation over the last axis: weight [C], bias [C], eps added to the variance.

    `ghosts` are further channels that count in mean and variance; they are zero and were removed. Of a negative number, so
    many of the channels are zero and do not count: padding.
    """

    weight: FloatArray
    bias: FloatArray
    eps: float
    ghosts: int = 0


@dataclass(frozen=True, eq=False)
class RmsNorm:
    """x / sqrt(mean of x^2 + eps) * weight over the last axis (arXiv 1910.07467): weight [C]."""

    weight: FloatArray
    eps: float


Norm = LayerNorm | RmsNorm


@dataclass(frozen=True, eq=False)
class Rotation:
    """Rotary position embedding of queries and keys [N, d] (arXiv 2104.09864): d is even, channel c pairs with c + d / 2.

    x_c becomes x_c cos - x_(c + d / 2) sin, and x_(c + d / 2) becomes x_(c + d / 2) cos + x_c sin. `cos` and `sin` are
    [N, d / 2], a row for each row of the stream that enters the attention; rows that are not turned have cos 1 and sin 0.
    Other pairings, such as 2 c with 2 c + 1, are this one with the channels of q and k in another order.
    """

    cos: FloatArray
    sin: FloatArray
