"""The layers that the modules are made of. Each is filled from the IR, and gives back its node with the weights of now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimc import ir

DType = npt.DTypeLike
NOTHING = ir.Linear(np.zeros((0, 0), np.float32))
"""Stands in a node that a module remembers for weights that the module holds itself."""


def parameter(array: ir.FloatArray) -> nn.Parameter:
    """A trainable copy of `array`."""
    return nn.Parameter(torch.from_numpy(np.array(array, order="C")))


def constant(array: npt.NDArray[Any]) -> Tensor:
    """A copy of `array`, for a buffer."""
    return torch.from_numpy(np.array(array, order="C"))


def read(tensor: Tensor, dtype: DType) -> ir.FloatArray:
    """A copy of `tensor` as an array."""
    wide = torch.float64 if np.dtype(dtype) == np.float64 else torch.float32
    return np.array(tensor.detach().to("cpu", wide).numpy(), dtype, order="C")


def hold(module: nn.Module, **arrays: npt.NDArray[Any] | None) -> None:
    """Give `module` constants by name, which move and change their type with it, and are no part of its state."""
    for name, array in arrays.items():
        module.register_buffer(name, None if array is None else constant(array), persistent=False)


def freeze(*modules: nn.Module | None) -> None:
    """Train no parameter of `modules`: nothing that is computed has a derivative by them."""
    for module in modules:
        if module is not None:
            module.requires_grad_(False)


class Linear(nn.Linear):
    """Linear layers that read the same, one product: weight [sum of outputs, in], one layer after the other.

    Where only some of them have a bias, `biased` [sum of outputs] is 1 for those, and the others' entries of `bias` play no
    part.
    """

    biased: Tensor | None

    def __init__(self, parts: Sequence[ir.Linear]) -> None:
        has_bias = [part.bias is not None for part in parts]
        self.sizes, self.has_bias = [len(part.weight) for part in parts], has_bias
        super().__init__(parts[0].weight.shape[1], sum(self.sizes), bias=any(has_bias), device="meta")
        self.weight = parameter(np.concatenate([part.weight for part in parts]))
        flags = None
        if any(has_bias):
            biases = [
                np.zeros(len(part.weight), part.weight.dtype) if part.bias is None else part.bias for part in parts
            ]
            self.bias = parameter(np.concatenate(biases))
            flags = None if all(has_bias) else np.repeat(np.array(has_bias, biases[0].dtype), self.sizes)
        hold(self, biased=flags)

    def reset_parameters(self) -> None:
        """Nothing: the weights are the model's."""

    def offset(self) -> Tensor | None:
        """The bias, zero for layers that have none."""
        return self.bias if self.biased is None else self.bias * self.biased

    def part(self, x: Tensor, first: int, last: int) -> Tensor:
        """Outputs `first` to `last` of `x` [..., in]."""
        bias = self.offset()
        return F.linear(x, self.weight[first:last], None if bias is None else bias[first:last])

    def forward(self, x: Tensor) -> Tensor:
        """All outputs of `x` [..., in]."""
        return F.linear(x, self.weight, self.offset())

    def to_ir(self, dtype: DType) -> list[ir.Linear]:
        """The layers."""
        ends = np.cumsum(self.sizes)[:-1]
        weights = np.split(read(self.weight, dtype), ends)
        biases: Iterable[ir.FloatArray | None] = [None] * len(weights)
        if any(self.has_bias):
            found = np.split(read(self.bias, dtype), ends)
            biases = [bias if has else None for bias, has in zip(found, self.has_bias, strict=True)]
        return [ir.Linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)]


class LayerNorm(nn.LayerNorm):
    """`slimc.ir.LayerNorm`: with `ghosts`, over further channels of zeros, or over fewer than there are."""

    def __init__(self, node: ir.LayerNorm) -> None:
        super().__init__(len(node.weight), eps=node.eps, device="meta")
        self.ghosts = node.ghosts
        self.weight, self.bias = parameter(node.weight), parameter(node.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., C] normalised."""
        if self.ghosts == 0:
            return super().forward(x)
        channels = x.shape[-1] + self.ghosts
        mean = x.sum(-1, keepdim=True) / channels
        centred = x - mean
        variance = (centred.square().sum(-1, keepdim=True) + self.ghosts * mean.square()) / channels
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias

    def to_ir(self, dtype: DType) -> ir.LayerNorm:
        """The node."""
        return ir.LayerNorm(read(self.weight, dtype), read(self.bias, dtype), self.eps, self.ghosts)


class RmsNorm(nn.RMSNorm):
    """`slimc.ir.RmsNorm`."""

    def __init__(self, node: ir.RmsNorm) -> None:
        super().__init__(len(node.weight), eps=node.eps, device="meta")
        self.weight = parameter(node.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., C] normalised, in the type of the weight, as autocast does it for LayerNorm."""
        return super().forward(x.to(self.weight.dtype))

    def to_ir(self, dtype: DType) -> ir.RmsNorm:
        """The node."""
        assert self.eps is not None
        return ir.RmsNorm(read(self.weight, dtype), self.eps)


Norm = LayerNorm | RmsNorm


def norm_of(node: ir.Norm | None) -> Norm | None:
    """The module of a norm, where there is one."""
    if node is None:
        return None
    return RmsNorm(node) if isinstance(node, ir.RmsNorm) else LayerNorm(node)


def normalised(norm: Norm | None, x: Tensor) -> Tensor:
    """`x` behind `norm`; `x` itself where there is none."""
    return x if norm is None else norm(x)


def norm_to_ir(norm: Norm | None, dtype: DType) -> Any:  # noqa: ANN401 - as the module is: ir.LayerNorm, ir.RmsNorm or none
    """The node of a norm, where there is one."""
    return None if norm is None else norm.to_ir(dtype)


def linear_of(node: ir.Linear | None) -> Linear | None:
    """The module of a linear layer, where there is one."""
    return None if node is None else Linear([node])


def linear_to_ir(linear: Linear | None, dtype: DType) -> Any:  # noqa: ANN401 - as the module is: ir.Linear or none
    """The node of a linear layer, where there is one."""
    return None if linear is None else linear.to_ir(dtype)[0]


class LayerScale(nn.Module):
    """A branch times `gamma` [C]."""

    def __init__(self, gamma: ir.FloatArray) -> None:
        super().__init__()
        self.gamma = parameter(gamma)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., C], scaled."""
        return x * self.gamma


class Constant(nn.Module):
    """A branch that adds `bias` [C] to every row."""

    def __init__(self, bias: ir.FloatArray) -> None:
        super().__init__()
        self.bias = parameter(bias)

    def forward(self) -> Tensor:
        """What is added."""
        return self.bias


def activate(kind: ir.Activation, x: Tensor) -> Tensor:
    """`x` behind an activation, as `slimc.ir.Activation` defines them."""
    if kind == "gelu":
        return F.gelu(x)
    if kind == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if kind == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.silu(x) if kind == "silu" else F.relu(x)
