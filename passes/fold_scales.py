"""Fold every constant scale into the weights beside it.

    soft head mask z   q = (n Wq^T + bq) * z        ->  rows of Wq and entries of bq times z; k and v likewise
    soft FFN mask f    (h * f) W2^T                 ->  columns of W2 times f
    softmax scale s    softmax(s q k^T)             ->  Wq and bq times s, scale 1; or weight and bias of q's norm
    residual scale r   r (sum_h a_h Wo^T + bo)      ->  Wo and bo times r (FFN: W2 and b2), scale 1
    layer scale g [C]  g * (sum_h a_h Wo^T + bo)    ->  row c of Wo and entry c of bo times g_c (FFN: W2 and b2), none
    classifier scale c c (f W^T + b)                ->  W and b times c, scale 1
    latent query       softmax(s (q z) (k z)^T)     ->  q times s and z; rows of Wk and bk, Wv and bv times their masks

Exact in real arithmetic: each line only moves a factor through a linear map. Shapes stay as they are. Binary masks are
left to RemoveMaskedChannels and RemoveMaskedHidden, which run first and save the work as well. A rotation is linear, so a
scale goes through it; masks stand in front of it, where the weights are.

Products are taken in float64: a layer scale may be as small as 1e-5.

Refuses a mask in front of a norm that is to see it (of q and k, or in an FFN or behind heads with a norm of their own).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slimc.errors import PassError
from slimc.ir import (
    Attention,
    Classifier,
    FloatArray,
    Head,
    LatentHead,
    LatentPool,
    LayerNorm,
    Linear,
    Mlp,
    Model,
    Norm,
)
from slimc.ir.interpret.linear import branch_scale
from slimc.passes.rewrite import map_branches, map_pool


@dataclass(frozen=True)
class FoldScales:
    """Leave no scale and no channel mask in the model."""

    def __call__(self, model: Model) -> Model:
        """`model` with scales of 1 and no channel masks; the same object where that is so already."""
        model = map_pool(map_branches(model, attention=_attention, mlp=_mlp), _pool, mlp=_mlp)
        if model.classifier.scale == 1.0:
            return model
        return replace(model, classifier=_classifier(model.classifier))


def _attention(attention: Attention) -> Attention:
    unit = attention.residual_scale == 1.0 and attention.layer_scale is None
    if not attention.masked and attention.scale == 1.0 and unit:
        return attention
    _refuse_masks(attention)
    outer = branch_scale(attention.residual_scale, attention.layer_scale)
    query_norm, scale = attention.query_norm, attention.scale
    if query_norm is not None:
        query_norm, scale = _scaled_norm(query_norm, scale), 1.0
    return replace(
        attention,
        heads=tuple(_head(head, scale, outer) for head in attention.heads),
        output_bias=_times(attention.output_bias, outer),
        query_norm=query_norm,
        scale=1.0,
        residual_scale=1.0,
        layer_scale=None,
    )


def _refuse_masks(attention: Attention) -> None:
    if attention.normed and any(head.mask is not None for head in attention.heads):
        raise PassError("FoldScales", "a mask stands before the norm of queries and keys", "mask values only")
    if attention.output_norm is not None and any(head.value_mask is not None for head in attention.heads):
        raise PassError("FoldScales", "a mask of values stands before a norm", "run RemoveMaskedChannels first")


def _head(head: Head, scale: float, outer: float | FloatArray) -> Head:
    query, key, value = head.query, head.key, head.value
    if head.mask is not None:
        query, key = _scaled(query, head.mask), _scaled(key, head.mask)
    if head.value_mask is not None:
        value = _scaled(value, head.value_mask)
    query = query if scale == 1.0 else _scaled(query, scale)
    output = _scaled(Linear(head.output), outer).weight
    return replace(head, query=query, key=key, value=value, output=output, mask=None, value_mask=None)


def _mlp(mlp: Mlp) -> Mlp:
    outer = branch_scale(mlp.residual_scale, mlp.layer_scale)
    if mlp.mask is None and mlp.residual_scale == 1.0 and mlp.layer_scale is None:
        return mlp
    if mlp.mask is not None and mlp.inner_norm is not None:
        raise PassError("FoldScales", "a mask of hidden units stands before a norm", "run RemoveMaskedHidden first")
    down = mlp.down if mlp.mask is None else Linear(mlp.down.weight * mlp.mask, mlp.down.bias)
    return replace(mlp, down=_scaled(down, outer), mask=None, residual_scale=1.0, layer_scale=None)


def _pool(pool: LatentPool) -> LatentPool:
    if not pool.masked and pool.scale == 1.0:
        return pool
    return replace(pool, heads=tuple(_latent(head, pool.scale) for head in pool.heads), scale=1.0)


def _latent(head: LatentHead, scale: float) -> LatentHead:
    factor = np.ones(len(head.query)) if head.mask is None else np.square(head.mask.astype(np.float64))
    query = (head.query * factor * scale).astype(head.query.dtype)
    value = head.value if head.value_mask is None else _scaled(head.value, head.value_mask)
    return replace(head, query=query, value=value, mask=None, value_mask=None)


def _classifier(classifier: Classifier) -> Classifier:
    return replace(classifier, heads=tuple(_scaled(head, classifier.scale) for head in classifier.heads), scale=1.0)


def _scaled_norm(norm: Norm, factor: float) -> Norm:
    """`norm` with its outputs multiplied by a number."""
    if factor == 1.0:
        return norm
    if isinstance(norm, LayerNorm):
        return replace(norm, weight=_product(norm.weight, factor), bias=_product(norm.bias, factor))
    return replace(norm, weight=_product(norm.weight, factor))


def _scaled(linear: Linear, factor: float | FloatArray) -> Linear:
    """`linear` with its outputs multiplied by `factor`: a number or one entry an output."""
    if isinstance(factor, float) and factor == 1.0:
        return linear
    rows = factor if isinstance(factor, float) else factor[:, None]
    return Linear(_product(linear.weight, rows), _times(linear.bias, factor))


def _times(vector: FloatArray | None, factor: float | FloatArray) -> FloatArray | None:
    return vector if vector is None or (isinstance(factor, float) and factor == 1.0) else _product(vector, factor)


def _product(array: FloatArray, factor: float | FloatArray) -> FloatArray:
    """Their product, in the type of `array`."""
    return (array * factor).astype(array.dtype, copy=False)
