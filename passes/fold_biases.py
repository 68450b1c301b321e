"""Fold the biases that need no operation of their own.

    key bias      softmax_j(q (k_j + bk)) = softmax_j(q k_j)                 a softmax row ignores what is added to all of it
                                                                            (a latent query's too)
    value bias    sum_j p_j (v_j + bv) Wo^T = (sum_j p_j v_j) Wo^T + bv Wo^T    the weights p_j of a row sum to 1
                                                                            -> output bias bo + sum over heads of Wo bv
    patch bias, prefix positions                                            -> into the position embeddings

Exact. Both attention lines hold with masked rows and ghosts among the keys, whose keys and values are zero then. A head
with a gate adds its value bias only when it is on, so its attention keeps its biases. A rotated key bias differs from key
to key, and a norm of the keys makes something else of it: there it stays. So does a value bias where a norm stands between
heads and output, and the patch bias in front of a norm or where there are no positions to take it. Biases in effect are
those after the head's mask, so this pass refuses masked heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from slimc.errors import PassError
from slimc.ir import Attention, Embedding, FloatArray, Head, LatentHead, LatentPool, Linear, Model
from slimc.passes.rewrite import map_branches, map_pool


@dataclass(frozen=True)
class FoldBiases:
    """Drop key biases; move value biases into the output bias and patch biases into the position embeddings."""

    def __call__(self, model: Model) -> Model:
        """`model` with the same meaning and fewer biases; the same object where there was none to fold."""
        model = map_pool(map_branches(model, attention=_attention), _pool)
        embedding = _embedding(model.embedding)
        return model if embedding is model.embedding else replace(model, embedding=embedding)


def _attention(attention: Attention) -> Attention:
    if all(head.key.bias is None and head.value.bias is None for head in attention.heads):
        return attention
    if any(head.gate is not None for head in attention.heads):
        return attention
    if attention.masked:
        raise PassError("FoldBiases", "a head still has a mask", "run RemoveMaskedChannels or FoldScales first")
    keys = [attention.key_norm is None and head.rotation is None for head in attention.heads]
    heads = tuple(_without_key_bias(head) if free else head for head, free in zip(attention.heads, keys, strict=True))
    if attention.output_norm is None:
        bias = _output_bias(attention.heads, attention.output_bias)
        attention = replace(attention, output_bias=bias)
        heads = tuple(_without_value_bias(head) for head in heads)
    if all(new is old for new, old in zip(heads, attention.heads, strict=True)):
        return attention
    return replace(attention, heads=heads)


def _pool(pool: LatentPool) -> LatentPool:
    if all(head.key.bias is None and head.value.bias is None for head in pool.heads):
        return pool
    if pool.masked:
        raise PassError("FoldBiases", "a head still has a mask", "run RemoveMaskedChannels or FoldScales first")
    heads = tuple(_without_value_bias(_without_key_bias(head)) for head in pool.heads)
    return replace(pool, heads=heads, output_bias=_output_bias(pool.heads, pool.output_bias))


AnyHead = TypeVar("AnyHead", Head, LatentHead)


def _without_key_bias(head: AnyHead) -> AnyHead:
    return head if head.key.bias is None else replace(head, key=Linear(head.key.weight))


def _without_value_bias(head: AnyHead) -> AnyHead:
    return head if head.value.bias is None else replace(head, value=Linear(head.value.weight))


def _output_bias(heads: Sequence[Head] | Sequence[LatentHead], bias: FloatArray | None) -> FloatArray | None:
    """Bo + sum over heads of Wo bv, summed in float64."""
    carried = [head.output.astype(np.float64) @ value for head in heads if (value := head.value.bias) is not None]
    if not carried:
        return bias
    total: FloatArray = np.sum(carried, axis=0)
    if bias is not None:
        total = total + bias
    return np.asarray(total, heads[0].output.dtype)


def _embedding(embedding: Embedding) -> Embedding:
    bias, position = embedding.patch.bias, embedding.patch_position
    if position is None or embedding.patch_norm is not None:
        bias = None
    if bias is None and embedding.prefix_position is None:
        return embedding
    if bias is not None and position is not None:
        position = position + bias
    prefix = embedding.prefix
    if embedding.prefix_position is not None:
        prefix = prefix + embedding.prefix_position
    return replace(
        embedding,
        patch=embedding.patch if bias is None else replace(embedding.patch, bias=None),
        prefix=prefix,
        prefix_position=None,
        patch_position=position,
    )
