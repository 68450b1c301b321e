"""The arithmetic that the interpreter's parts share, in float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from slimc.ir import LayerNorm, Linear

Float64 = npt.NDArray[np.float64]
_ERF = np.frompyfunc(math.erf, 1, 1)


def normalise(norm: LayerNorm, x: Float64) -> Float64:
    """LayerNorm over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    scaled: Float64 = centred / np.sqrt(variance + norm.eps) * norm.weight.astype(np.float64)
    return scaled + norm.bias


def apply(linear: Linear, x: Float64) -> Float64:
    """`linear` over the last axis."""
    y: Float64 = x @ linear.weight.astype(np.float64).T
    return y if linear.bias is None else y + linear.bias


def gelu(x: Float64) -> Float64:
    """Exact GELU: x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel, arXiv 1606.08415)."""
    erf: Float64 = _ERF(x / np.sqrt(2.0)).astype(np.float64)
    return x * 0.5 * (1.0 + erf)
