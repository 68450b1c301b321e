"""Torch modules that the networks share, under timm's names for their weights.

They are not imported from timm, because that costs every compilation 1.2 s (timm imports torchvision, which imports
torch._dynamo): more than passes and emission together. A test holds them against timm's own network.
"""

from __future__ import annotations

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Non-overlapping patches [B, channels, height, width] to rows [B, patches, C], row-major."""

    def __init__(self, channels: int, patch: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """Rows of `images`."""
        rows: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return rows


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them; `hidden_mask` multiplies what lies between, where it is given."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def hidden_mask(self) -> Tensor | None:
        """What multiplies the hidden units, broadcast over [B, N, hidden]."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Rows [B, N, C] to rows [B, N, C]."""
        hidden = nn.functional.gelu(self.fc1(x))
        mask = self.hidden_mask()
        rows: Tensor = self.fc2(hidden if mask is None else hidden * mask)
        return rows
