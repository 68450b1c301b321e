"""Fold the batch normalisation of a stem into its convolutions.

In evaluation it is one scale and one shift a channel, g = weight / sqrt(variance + eps):

    (conv(x) + b - mean) g + shift  =  conv with (W g) (x)  +  (b - mean) g + shift

Given   convolution W [out, in, k, k], bias [out] or none, with a BatchNorm
Result  W and bias of the same shapes, no BatchNorm

Exact, at the border too: zero padding stands before the convolution. Computed in float64, as g may span magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slimc.ir import Convolution, Model


@dataclass(frozen=True)
class FoldBatchNorm:
    """Leave no batch normalisation in the stem."""

    def __call__(self, model: Model) -> Model:
        """`model` with plain convolutions; the same object where they are plain already."""
        stem = tuple(_fold(stage) if isinstance(stage, Convolution) else stage for stage in model.embedding.stem)
        if all(new is old for new, old in zip(stem, model.embedding.stem, strict=True)):
            return model
        return replace(model, embedding=replace(model.embedding, stem=stem))


def _fold(convolution: Convolution) -> Convolution:
    norm = convolution.norm
    if norm is None:
        return convolution
    gain = norm.weight.astype(np.float64) / np.sqrt(norm.variance.astype(np.float64) + norm.eps)
    bias = (0.0 if convolution.bias is None else convolution.bias) - norm.mean.astype(np.float64)
    dtype = convolution.weight.dtype
    return replace(
        convolution,
        weight=(convolution.weight * gain[:, None, None, None]).astype(dtype),
        bias=(bias * gain + norm.bias).astype(dtype),
        norm=None,
    )
