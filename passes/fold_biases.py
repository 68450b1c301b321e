"""Fold the biases that need no operation of their own.

    key bias      softmax_j(q (k_j + bk)) = softmax_j(q k_j)                 a softmax row ignores what is added to all of it
    value bias    sum_j p_j (v_j + bv) Wo^T = (sum_j p_j v_j) Wo^T + bv Wo^T    the weights p_j of a row sum to 1
                                                                            -> output bias bo + sum over heads of Wo bv
    patch bias, prefix positions                                            -> into the position embeddings

Exact. Both attention lines hold with masked rows and ghosts among the keys, whose keys and values are zero then. A head
with a gate adds its value bias only when it is on, so its attention keeps its biases. Biases in effect are those after the
head's mask, so this pass refuses masked heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slimc.errors import PassError
from slimc.ir import Attention, Embedding, FloatArray, Head, Linear, Model
from slimc.passes.rewrite import map_branches


@dataclass(frozen=True)
class FoldBiases:
    """Drop key biases; move value biases into the output bias and patch biases into the position embeddings."""

    def __call__(self, model: Model) -> Model:
        """`model` with the same meaning and fewer biases; the same object where there was none to fold."""
        model = map_branches(model, attention=_attention)
        embedding = _embedding(model.embedding, len_patches=_patches(model))
        return model if embedding is model.embedding else replace(model, embedding=embedding)


def _attention(attention: Attention) -> Attention:
    if all(head.key.bias is None and head.value.bias is None for head in attention.heads):
        return attention
    if any(head.gate is not None for head in attention.heads):
        return attention
    if any(head.mask is not None for head in attention.heads):
        raise PassError("FoldBiases", "a head still has a mask", "run RemoveMaskedChannels or FoldScales first")
    return replace(
        attention,
        heads=tuple(_without_biases(head) for head in attention.heads),
        output_bias=_output_bias(attention),
    )


def _without_biases(head: Head) -> Head:
    return replace(head, key=Linear(head.key.weight), value=Linear(head.value.weight))


def _output_bias(attention: Attention) -> FloatArray | None:
    """Bo + sum over heads of Wo bv, summed in float64."""
    carried = [
        head.output.astype(np.float64) @ head.value.bias for head in attention.heads if head.value.bias is not None
    ]
    if not carried:
        return attention.output_bias
    total = np.sum(carried, axis=0)
    if attention.output_bias is not None:
        total = total + attention.output_bias
    return np.asarray(total, attention.heads[0].output.dtype)


def _patches(model: Model) -> int:
    patches = model.embedding.patch.patches
    return model.grid[0] * model.grid[1] if patches is None else len(patches)


def _embedding(embedding: Embedding, len_patches: int) -> Embedding:
    bias, position = embedding.patch.bias, embedding.patch_position
    if bias is None and embedding.prefix_position is None:
        return embedding
    if bias is not None:
        position = np.tile(bias, (len_patches, 1)) if position is None else position + bias
    prefix = embedding.prefix
    if embedding.prefix_position is not None:
        prefix = prefix + embedding.prefix_position
    return replace(
        embedding,
        patch=replace(embedding.patch, bias=None),
        prefix=prefix,
        prefix_position=None,
        patch_position=position,
    )
