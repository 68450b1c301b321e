"""Typed access to a state dict: every weight is asked for by name and shape, and none may be left over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from slimc.errors import CheckpointError
from slimc.ir import FloatArray, Head, LayerNorm, Linear


class Weights:
    """The weights of one checkpoint as float32 arrays that share memory with it where they can.

    Every `take` checks type, shape and finiteness; `finish` checks that nothing was overlooked.
    """

    def __init__(self, path: Path, state: Mapping[str, torch.Tensor]) -> None:
        self._path = path
        self._state = state
        self._taken: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._state

    def names(self) -> Iterable[str]:
        """The names of all weights."""
        return self._state.keys()

    def shape(self, key: str, axes: int | None = None) -> tuple[int, ...]:
        """Shape of the weight `key`, which has `axes` axes where that is given, none of them empty.

        Raises:
            CheckpointError: there is no such weight, or it has another number of axes.
        """
        if key not in self._state:
            raise CheckpointError(f"{self._path}: the state dict has no {key}")
        shape = tuple(self._state[key].shape)
        if axes is not None and (len(shape) != axes or 0 in shape):
            raise CheckpointError(f"{self._path}: {key} has the shape {_text(shape)}, expected {axes} axes, none empty")
        return shape

    def image_channels(self, key: str) -> int:
        """Channels of the image, from the convolution `key` that reads it.

        Raises:
            CheckpointError: there are none, or more than 4.
        """
        return self.check_channels(key, self.shape(key, axes=4)[1])

    def check_channels(self, key: str, channels: float) -> int:
        """`channels`, which `key` tells, where images can have so many: 1 to 4."""
        if channels not in range(1, 5):
            raise CheckpointError(f"{self._path}: {key} reads images of {channels:g} channels; expected 1 to 4")
        return int(channels)

    def count(self, prefix: str) -> int:
        """Number of consecutive indices ``prefix.0``, ``prefix.1``, ... that have weights."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        found = {int(match[1]) for key in self._state if (match := pattern.match(key))}
        if found != set(range(len(found))):
            missing = min(set(range(max(found) + 1)) - found)
            raise CheckpointError(f"{self._path}: the state dict has {prefix}.{max(found)} but no {prefix}.{missing}")
        return len(found)

    def take(self, key: str, shape: tuple[int, ...]) -> FloatArray:
        """The weight `key` as float32 of the given shape.

        Raises:
            CheckpointError: it is missing, of another shape, not of a floating-point type, or has NaN or Inf.
        """
        if self.shape(key) != shape:
            raise CheckpointError(
                f"{self._path}: {key} has the shape {_text(self.shape(key))}, expected {_text(shape)}"
            )
        tensor = self._state[key]
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise CheckpointError(f"{self._path}: {key} has the type {tensor.dtype}, expected floating-point weights")
        array: FloatArray = tensor.detach().to(torch.float32).contiguous().numpy()
        if not np.isfinite(array).all():
            raise CheckpointError(f"{self._path}: {key} has NaN or Inf among its weights")
        self._taken.add(key)
        return array

    def maybe(self, key: str, shape: tuple[int, ...]) -> FloatArray | None:
        """Like `take`, but none where there is no such weight."""
        return self.take(key, shape) if key in self else None

    def linear(self, name: str, out: int, into: int, *, bias: bool | None = True) -> Linear:
        """The linear layer `name`; `bias` None takes a bias where there is one."""
        weight = self.take(f"{name}.weight", (out, into))
        if bias is None:
            return Linear(weight, self.maybe(f"{name}.bias", (out,)))
        return Linear(weight, self.take(f"{name}.bias", (out,)) if bias else None)

    def norm(self, name: str, dim: int, eps: float) -> LayerNorm:
        """The LayerNorm `name`."""
        return LayerNorm(self.take(f"{name}.weight", (dim,)), self.take(f"{name}.bias", (dim,)), eps)

    def skip(self, key: str) -> None:
        """Say that `key` is known and does not matter."""
        self._taken.add(key)

    def finish(self) -> None:
        """Check that every weight was taken.

        Raises:
            CheckpointError: one was not, so the checkpoint is of another network than the one that was read.
        """
        left = sorted(set(self._state) - self._taken)
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise CheckpointError(
                f"{self._path}: unexpected {left[0]}{more} in the state dict: not a network slimc knows"
            )


def split_heads(qkv: Linear, output: FloatArray, heads: int, masks: FloatArray | None = None) -> tuple[Head, ...]:
    """Heads of a fused projection whose rows are laid out as (3, H, d), with the columns of `output` [C, H d] and, where
    there are any, `masks` [H, d].
    """
    weight = qkv.weight.reshape(3, heads, -1, qkv.weight.shape[1])
    bias = None if qkv.bias is None else qkv.bias.reshape(3, heads, -1)
    columns = output.reshape(len(output), heads, -1)

    def part(i: int, head: int) -> Linear:
        return Linear(weight[i, head], None if bias is None else bias[i, head])

    def mask(head: int) -> FloatArray | None:
        return None if masks is None else masks[head]

    return tuple(
        Head(part(0, h), part(1, h), part(2, h), columns[:, h], mask(h), value_mask=mask(h)) for h in range(heads)
    )


def _text(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
