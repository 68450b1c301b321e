"""What the checks of every node share: shapes and index sets that fit."""

from __future__ import annotations

import numpy as np

from slimc import ir
from slimc.errors import ValidationError


def check_norm(name: str, norm: ir.Norm | None, dim: int) -> None:
    """Check a norm over `dim` channels, where there is one."""
    if norm is None:
        return
    check_shape(f"{name}.weight", norm.weight, (dim,))
    if isinstance(norm, ir.LayerNorm):
        check_shape(f"{name}.bias", norm.bias, (dim,))
        if norm.ghosts < 0 and dim + norm.ghosts < 1:
            raise ValidationError(f"{name}.ghosts: {-norm.ghosts} of {dim} channels do not count")


def check_linear(name: str, linear: ir.Linear, out: int, into: int) -> None:
    """Check a linear layer of the given widths."""
    check_shape(f"{name}.weight", linear.weight, (out, into))
    check_shape(f"{name}.bias", linear.bias, (out,))


def check_shape(name: str, array: ir.FloatArray | None, shape: tuple[int, ...]) -> None:
    """Check the shape of an array, where there is one."""
    if array is not None and array.shape != shape:
        raise ValidationError(f"{name}: shape {array.shape}, expected {shape}")


def check_indices(name: str, indices: ir.IndexArray | None, size: int) -> None:
    """Check a set of rows of a stream of `size` rows, where there is one."""
    if indices is None:
        return
    if indices.ndim != 1 or (len(indices) and not (indices.min() >= 0 and indices.max() < size)):
        raise ValidationError(f"{name}: indices outside the {size} rows there are")
    if len(np.unique(indices)) != len(indices):
        raise ValidationError(f"{name}: an index stands twice")
