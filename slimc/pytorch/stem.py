"""What stands before the patches: convolutions, and T2T-ViT's windows with linear attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimc import ir
from slimc.pytorch.layers import DType, LayerNorm, Linear, parameter, read


class Stem(nn.Sequential):
    """Stages from a map to a map, counted from 1: ``conv1``, ``bn1``, ``relu1``, or ``split1``."""

    def __init__(self, stages: tuple[ir.Convolution | ir.SoftSplit, ...]) -> None:
        super().__init__()
        self.count = len(stages)
        for i, stage in enumerate(stages, 1):
            if isinstance(stage, ir.SoftSplit):
                self.add_module(f"split{i}", SoftSplit(stage))
                continue
            self.add_module(f"conv{i}", Convolution(stage))
            if stage.norm is not None:
                self.add_module(f"bn{i}", BatchNorm(stage.norm))
            self.add_module(f"relu{i}", nn.ReLU())

    def to_ir(self, dtype: DType) -> tuple[ir.Convolution | ir.SoftSplit, ...]:
        """The nodes."""
        nodes: list[ir.Convolution | ir.SoftSplit] = []
        for i in range(1, self.count + 1):
            split, conv, norm = (self._modules.get(f"{name}{i}") for name in ("split", "conv", "bn"))
            if isinstance(split, SoftSplit):
                nodes.append(split.to_ir(dtype))
            elif isinstance(conv, Convolution):
                nodes.append(conv.to_ir(dtype, norm.to_ir(dtype) if isinstance(norm, BatchNorm) else None))
        return tuple(nodes)


class Convolution(nn.Conv2d):
    """The convolution of a stage."""

    def __init__(self, node: ir.Convolution) -> None:
        out, into, side, _ = node.weight.shape
        biased = node.bias is not None
        super().__init__(into, out, side, node.stride, padding=side // 2, bias=biased, device="meta")
        self.weight = parameter(node.weight)
        if node.bias is not None:
            self.bias = parameter(node.bias)

    def to_ir(self, dtype: DType, norm: ir.BatchNorm | None) -> ir.Convolution:
        """The node of the stage, with its `norm`."""
        bias = None if self.bias is None else read(self.bias, dtype)
        return ir.Convolution(read(self.weight, dtype), bias, self.stride[0], norm)


class BatchNorm(nn.BatchNorm2d):
    """The batch normalisation of a stage; in training it is that of the batch, as ever."""

    def __init__(self, node: ir.BatchNorm) -> None:
        super().__init__(len(node.weight), node.eps)
        self.weight, self.bias = parameter(node.weight), parameter(node.bias)
        self.running_mean, self.running_var = torch.from_numpy(node.mean.copy()), torch.from_numpy(node.variance.copy())

    def to_ir(self, dtype: DType) -> ir.BatchNorm:
        """The node."""
        assert self.running_mean is not None
        assert self.running_var is not None
        weight, bias = read(self.weight, dtype), read(self.bias, dtype)
        return ir.BatchNorm(weight, bias, read(self.running_mean, dtype), read(self.running_var, dtype), self.eps)


class SoftSplit(nn.Module):
    """Overlapping windows of a map, each a row, and a performer on the rows: `slimc.ir.SoftSplit`."""

    def __init__(self, node: ir.SoftSplit) -> None:
        super().__init__()
        self.side, self.stride, self.padding = node.side, node.stride, node.padding
        self.attention = None if node.performer is None else Performer(node.performer)

    def forward(self, images: Tensor) -> Tensor:
        """The map [B, D, h, w] of the map [B, E, H, W]."""
        height, width = images.shape[2:]
        down, across = (1 + (side + 2 * self.padding - self.side) // self.stride for side in (height, width))
        windows = F.unfold(images, self.side, padding=self.padding, stride=self.stride)
        if self.attention is not None:
            windows = self.attention(windows.transpose(1, 2)).transpose(1, 2)
        return torch.unflatten(windows, 2, (down, across))

    def to_ir(self, dtype: DType) -> ir.SoftSplit:
        """The node."""
        performer = None if self.attention is None else self.attention.to_ir(dtype)
        return ir.SoftSplit(self.side, self.stride, self.padding, performer)


class Performer(nn.Module):
    """A layer of linear attention: `slimc.ir.Performer`, by T2T-ViT's names; its random features `w` are not trained."""

    def __init__(self, node: ir.Performer) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(node.norm1), LayerNorm(node.norm2)
        self.kqv, self.proj = Linear([node.key, node.query, node.value]), Linear([node.output])
        self.w = parameter(node.features)
        self.w.requires_grad_(False)
        self.mlp = nn.Sequential(Linear([node.up]), nn.GELU(), Linear([node.down]))

    def forward(self, x: Tensor) -> Tensor:
        """Rows [B, N, D] of rows [B, N, E]."""
        k, q, v = self.kqv(self.norm1(x)).chunk(3, -1)
        k, q = self._features(k), self._features(q)
        sums = q @ k.sum(1).unsqueeze(2) + 1e-8
        y = v + self.proj(q @ (k.transpose(1, 2) @ v) / sums)
        rows: Tensor = y + self.mlp(self.norm2(y))
        return rows

    def _features(self, u: Tensor) -> Tensor:
        """exp(w u - |u|^2 / 2) / sqrt(m)."""
        exponent = F.linear(u, self.w) - u.square().sum(-1, keepdim=True) / 2
        return exponent.exp() / math.sqrt(self.w.shape[0])

    def to_ir(self, dtype: DType) -> ir.Performer:
        """The node."""
        key, query, value = self.kqv.to_ir(dtype)
        up, down = (layer.to_ir(dtype)[0] for layer in self.mlp if isinstance(layer, Linear))
        return ir.Performer(
            norm1=self.norm1.to_ir(dtype),
            key=key,
            query=query,
            value=value,
            features=read(self.w, dtype),
            output=self.proj.to_ir(dtype)[0],
            norm2=self.norm2.to_ir(dtype),
            up=up,
            down=down,
        )
