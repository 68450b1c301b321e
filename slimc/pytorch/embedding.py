"""The stream's first rows: prefix tokens and patches, the latter by one product."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slimc import ir
from slimc.pytorch.layers import DType, norm_of, normalised, parameter, read
from slimc.pytorch.rows import Rows
from slimc.pytorch.stem import Stem


class PatchEmbed(nn.Module):
    """Patches of the image, or of what `stem` makes of it, as rows.

    `proj.weight` is [C, channels, height, width], as that of the convolution that the checkpoint has; it is applied as a
    product, which GPUs do several times as fast.
    """

    def __init__(self, embedding: ir.Embedding, grid: tuple[int, int]) -> None:
        super().__init__()
        patch = embedding.patch
        self.patches, self.grid = patch.patches, grid
        self.stem = Stem(embedding.stem)
        dim, channels, height, width = patch.weight.shape
        self.proj = nn.Conv2d(
            channels, dim, (height, width), (height, width), bias=patch.bias is not None, device="meta"
        )
        self.proj.weight = parameter(patch.weight)
        if patch.bias is not None:
            self.proj.bias = parameter(patch.bias)
        self.norm, self.chosen = norm_of(embedding.patch_norm), Rows(patch.patches, grid[0] * grid[1])

    def forward(self, images: Tensor) -> Tensor:
        """Rows [B, patches, C] of images [B, channels, height, width]."""
        maps = self.stem(images)
        (down, across), (height, width) = self.grid, self.proj.weight.shape[2:]
        cells = torch.unflatten(torch.unflatten(maps, 3, (across, width)), 2, (down, height))
        pixels = self.chosen(cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
        return normalised(self.norm, nn.functional.linear(pixels, self.proj.weight.flatten(1), self.proj.bias))

    def to_ir(self, dtype: DType) -> ir.PatchEmbed:
        """The node of the patches."""
        bias = None if self.proj.bias is None else read(self.proj.bias, dtype)
        return ir.PatchEmbed(read(self.proj.weight, dtype), bias, self.patches)


class Positions(nn.Module):
    """Position embeddings: of `prefix` [P, C] and `patches` [patches, C], as far as there are any."""

    prefix: nn.Parameter | None
    patches: nn.Parameter | None

    def __init__(self, embedding: ir.Embedding) -> None:
        super().__init__()
        prefix = embedding.prefix_position if len(embedding.prefix) else None
        for name, array in (("prefix", prefix), ("patches", embedding.patch_position)):
            self.register_parameter(name, None if array is None else parameter(array))

    def prefix_rows(self, tokens: Tensor) -> Tensor:
        """Prefix tokens [P, C] with their positions."""
        return tokens if self.prefix is None else tokens + self.prefix

    def patch_rows(self, rows: Tensor) -> Tensor:
        """Patches [B, patches, C] with their positions."""
        return rows if self.patches is None else rows + self.patches
