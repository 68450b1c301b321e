"""The arithmetic that the interpreter's parts share, in float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from slimc.ir import FloatArray, LayerNorm, Linear, Mlp

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


def zero_row_output(mlp: Mlp) -> FloatArray:
    """What the FFN adds to a row that it does not compute [C]: its output for a zero normalised row."""
    hidden = gelu(apply(mlp.up, np.zeros((1, mlp.up.weight.shape[1]))))
    if mlp.mask is not None:
        hidden = hidden * mlp.mask
    return np.asarray(apply(mlp.down, hidden)[0] * mlp.residual_scale, mlp.down.weight.dtype)
