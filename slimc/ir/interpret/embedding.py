"""What an embedding means, in float64 NumPy."""

from __future__ import annotations

import numpy as np

from slimc.ir import BatchNorm, Convolution, Embedding, SoftSplit
from slimc.ir.interpret.linear import Float64, normalise
from slimc.ir.interpret.stem import split_softly


def embed(embedding: Embedding, images: Float64) -> Float64:
    """The first stream [B, P + patches, C]."""
    for stage in embedding.stem:
        images = split_softly(stage, images) if isinstance(stage, SoftSplit) else convolve(stage, images)
    weight = embedding.patch.weight.astype(np.float64)
    patches = cut_patches(images, weight.shape[2], weight.shape[3])
    if embedding.patch.patches is not None:
        patches = patches[:, embedding.patch.patches]
    patch_rows = patches @ weight.reshape(weight.shape[0], -1).T
    if embedding.patch.bias is not None:
        patch_rows = patch_rows + embedding.patch.bias
    patch_rows = normalise(embedding.patch_norm, patch_rows)
    if embedding.patch_position is not None:
        patch_rows = patch_rows + embedding.patch_position
    prefix = embedding.prefix.astype(np.float64)
    if embedding.prefix_position is not None:
        prefix = prefix + embedding.prefix_position
    rows = np.concatenate([np.broadcast_to(prefix, (len(images), *prefix.shape)), patch_rows], axis=1)
    return normalise(embedding.norm, rows)


def cut_patches(images: Float64, height: int, width: int) -> Float64:
    """Patches [B, patches, channels * height * width] of `images`, row-major, channels first within a patch."""
    batch, channels, rows, columns = images.shape
    grid = images.reshape(batch, channels, rows // height, height, columns // width, width)
    cells: Float64 = grid.transpose(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * height * width)
    return cells


def convolve(convolution: Convolution, images: Float64) -> Float64:
    """One convolution of the stem, with its normalisation and ReLU."""
    weight = convolution.weight.astype(np.float64)
    size, stride = weight.shape[2], convolution.stride
    border = (size // 2, size // 2)
    padded = np.pad(images, ((0, 0), (0, 0), border, border))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (2, 3))[:, :, ::stride, ::stride]
    y = np.einsum("bchwij,ocij->bohw", windows, weight, optimize=True)
    if convolution.bias is not None:
        y = y + convolution.bias[:, None, None]
    return np.maximum(y if convolution.norm is None else batch_normalise(convolution.norm, y), 0.0)


def batch_normalise(norm: BatchNorm, x: Float64) -> Float64:
    """Batch normalisation of [B, C, height, width] as in evaluation."""
    scale = norm.weight / np.sqrt(norm.variance.astype(np.float64) + norm.eps)
    return (x - norm.mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
