"""T2T-ViT's performer stem in PyTorch (Yuan et al., arXiv 2101.11986; Choromanski et al., arXiv 2009.14794)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Side, stride and padding of the three soft splits.
SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))


class TokenPerformer(nn.Module):
    """Linear attention with random features, whose skip connection starts at the values, and an MLP."""

    def __init__(self, into: int, width: int, features: int) -> None:
        super().__init__()
        self.kqv = nn.Linear(into, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(into)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.w = nn.Parameter(torch.randn(features, width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rows [B, N, width] of rows [B, N, into]."""
        key, query, value = self.kqv(self.norm1(x)).float().chunk(3, dim=-1)
        key, query = self._features(key), self._features(query)
        mixed = query @ (key.transpose(1, 2) @ value) / (query @ key.sum(1).unsqueeze(2) + 1e-8)
        y = value + self.proj(mixed.to(x.dtype))
        return y + self.mlp(self.norm2(y))  # type: ignore[no-any-return]

    def _features(self, u: Tensor) -> Tensor:
        """exp(w u - |u|^2 / 2) / sqrt(m), [B, N, m], in float32."""
        w = self.w.float()
        features: Tensor = torch.exp(u @ w.T - u.square().sum(-1, keepdim=True) / 2)
        return features / math.sqrt(len(w))


class TokensToToken(nn.Module):
    """Images [B, channels, height, width] to rows [B, patches, dim], one for every 16 x 16 pixels."""

    def __init__(self, channels: int, dim: int, width: int, features: int) -> None:
        super().__init__()
        self.attention1 = TokenPerformer(channels * SPLITS[0][0] ** 2, width, features)
        self.attention2 = TokenPerformer(width * SPLITS[1][0] ** 2, width, features)
        self.project = nn.Linear(width * SPLITS[2][0] ** 2, dim)

    def forward(self, images: Tensor) -> Tensor:
        """The embedded rows."""
        for performer, (side, stride, padding) in zip((self.attention1, self.attention2), SPLITS, strict=False):
            height, width = images.shape[2] // stride, images.shape[3] // stride
            rows = performer(F.unfold(images, side, stride=stride, padding=padding).transpose(1, 2))
            images = rows.transpose(1, 2).unflatten(2, (height, width))
        side, stride, padding = SPLITS[2]
        return self.project(F.unfold(images, side, stride=stride, padding=padding).transpose(1, 2))  # type: ignore[no-any-return]
