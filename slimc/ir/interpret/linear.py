"""The arithmetic that the interpreter's parts share, in float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from slimc.ir import Activation, FloatArray, Linear, Mlp, Norm, RmsNorm

Float64 = npt.NDArray[np.float64]
_ERF = np.frompyfunc(math.erf, 1, 1)


def normalise(norm: Norm | None, x: Float64) -> Float64:
    """`norm` over the last axis; `x` itself where there is none, or no channel."""
    if norm is None or x.shape[-1] == 0:
        return x
    if isinstance(norm, RmsNorm):
        scaled: Float64 = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + norm.eps) * norm.weight.astype(np.float64)
        return scaled
    channels = x.shape[-1] + norm.ghosts
    mean = x.sum(-1, keepdims=True) / channels
    centred = x - mean
    variance = (np.square(centred).sum(-1, keepdims=True) + norm.ghosts * np.square(mean)) / channels
    scaled = centred / np.sqrt(variance + norm.eps) * norm.weight.astype(np.float64)
    return scaled + norm.bias


def apply(linear: Linear, x: Float64) -> Float64:
    """`linear` over the last axis."""
    y: Float64 = x @ linear.weight.astype(np.float64).T
    return y if linear.bias is None else y + linear.bias


def gelu(x: Float64) -> Float64:
    """Exact GELU: x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel, arXiv 1606.08415)."""
    erf: Float64 = _ERF(x / np.sqrt(2.0)).astype(np.float64)
    return x * 0.5 * (1.0 + erf)


def activate(kind: Activation, x: Float64) -> Float64:
    """An activation, as `slimc.ir.Activation` defines them."""
    if kind == "gelu":
        return gelu(x)
    if kind == "gelu_tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    if kind == "relu":
        return np.maximum(x, 0.0)
    rate = 1.702 if kind == "quick_gelu" else 1.0
    return x * np.exp(-np.logaddexp(0.0, -rate * x))


def hidden_units(mlp: Mlp, n: Float64) -> Float64:
    """The hidden units [..., F] of an FFN that reads `n`, as `down` reads them, without what an image decides."""
    up = apply(mlp.up, n)
    hidden = activate(mlp.activation, up) if mlp.gate is None else activate(mlp.activation, apply(mlp.gate, n)) * up
    mask = factor(mlp.mask)
    hidden = hidden * mask
    return hidden if mlp.inner_norm is None else normalise(mlp.inner_norm, hidden) * mask


def factor(mask: FloatArray | None) -> Float64 | float:
    """What a mask multiplies by; 1 where there is none."""
    return 1.0 if mask is None else mask.astype(np.float64)


def zero_row_output(mlp: Mlp) -> FloatArray:
    """What the FFN adds to a row that it does not compute [C]: its output for a zero normalised row."""
    hidden = hidden_units(mlp, np.zeros((1, mlp.up.weight.shape[1])))
    added = apply(mlp.down, hidden)[0] * branch_scale(mlp.residual_scale, mlp.layer_scale)
    return np.asarray(added, mlp.down.weight.dtype)


def branch_scale(residual: float, layer: FloatArray | None) -> Float64 | float:
    """What multiplies a branch: a number, or one for each channel [C]."""
    return residual if layer is None else residual * layer.astype(np.float64)
