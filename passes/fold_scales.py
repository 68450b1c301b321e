"""Fold every constant scale into the weights beside it.

    soft head mask z   q = (n Wq^T + bq) * z        ->  rows of Wq and entries of bq times z; k and v likewise
    soft FFN mask f    (h * f) W2^T                 ->  columns of W2 times f
    softmax scale s    softmax(s q k^T)             ->  Wq and bq times s, scale 1
    residual scale r   r (sum_h a_h Wo^T + bo)      ->  Wo and bo times r (FFN: W2 and b2), scale 1
    classifier scale c c (f W^T + b)                ->  W and b times c, scale 1

Exact in real arithmetic: each line only moves a factor through a linear map. Shapes stay as they are. Binary masks are
left to RemoveMaskedChannels and RemoveMaskedHidden, which run first and save the work as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from slimc.ir import Attention, Classifier, FloatArray, Head, Linear, Mlp, Model
from slimc.passes.rewrite import map_branches


@dataclass(frozen=True)
class FoldScales:
    """Leave no scale and no channel mask in the model."""

    def __call__(self, model: Model) -> Model:
        """`model` with scales of 1 and no channel masks; the same object where that is so already."""
        model = map_branches(model, attention=_attention, mlp=_mlp)
        if model.classifier.scale == 1.0:
            return model
        return replace(model, classifier=_classifier(model.classifier))


def _attention(attention: Attention) -> Attention:
    masked = any(head.mask is not None for head in attention.heads)
    if not masked and attention.scale == 1.0 and attention.residual_scale == 1.0:
        return attention
    outer = attention.residual_scale
    heads = tuple(_head(head, attention.scale, outer) for head in attention.heads)
    return replace(
        attention, heads=heads, output_bias=_times(attention.output_bias, outer), scale=1.0, residual_scale=1.0
    )


def _head(head: Head, scale: float, outer: float) -> Head:
    query, key, value = head.query, head.key, head.value
    if head.mask is not None:
        query, key, value = (_scaled(linear, head.mask) for linear in (query, key, value))
    output = head.output if outer == 1.0 else head.output * head.output.dtype.type(outer)
    query = query if scale == 1.0 else _scaled(query, scale)
    return replace(head, query=query, key=key, value=value, output=output, mask=None)


def _mlp(mlp: Mlp) -> Mlp:
    if mlp.mask is None and mlp.residual_scale == 1.0:
        return mlp
    down = mlp.down if mlp.mask is None else Linear(mlp.down.weight * mlp.mask, mlp.down.bias)
    return replace(mlp, down=_scaled(down, mlp.residual_scale), mask=None, residual_scale=1.0)


def _classifier(classifier: Classifier) -> Classifier:
    return replace(classifier, heads=tuple(_scaled(head, classifier.scale) for head in classifier.heads), scale=1.0)


def _scaled(linear: Linear, factor: float | FloatArray) -> Linear:
    """`linear` with its outputs multiplied by `factor`: a number or one entry an output."""
    rows = factor if isinstance(factor, float) else factor[:, None]
    dtype = linear.weight.dtype
    return Linear((linear.weight * rows).astype(dtype, copy=False), _times(linear.bias, factor))


def _times(vector: FloatArray | None, factor: float | FloatArray) -> FloatArray | None:
    if vector is None or (isinstance(factor, float) and factor == 1.0):
        return vector
    return (vector * factor).astype(vector.dtype, copy=False)
