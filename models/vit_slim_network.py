"""ViT-Slim's masked network in PyTorch, trainable: the reference that everything else is measured against.

The masks multiply, as in the paper; they are soft (raw zetas, tanh for patches) until `compress` fixes binary ones. State
dict keys are those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimc.models.modules import Mlp, PatchEmbed
from slimc.models.vit_slim_masks import Masks


@dataclass(frozen=True)
class VitSlimConfig:
    """Geometry of a ViT-Slim network. `zeta` is the attention zeta's shape without singleton axes: (H or 1, d or 1)."""

    image: tuple[int, int]
    patch: tuple[int, int]
    dim: int
    depth: int
    heads: int
    zeta: tuple[int, int]
    hidden: tuple[int, ...]
    classes: int
    scale: float
    qkv_bias: bool = True
    distilled: bool = False
    representation: int | None = None
    eps: float = 1e-6
    channels: int = 3

    @property
    def head_dim(self) -> int:
        """Channels of one head before anything is removed."""
        return self.dim // self.heads

    @property
    def prefix(self) -> int:
        """Tokens before the patches: cls, and dist in distilled models."""
        return 2 if self.distilled else 1

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        return self.image[0] // self.patch[0], self.image[1] // self.patch[1]

    @property
    def tokens(self) -> int:
        """All tokens T."""
        return self.prefix + self.grid[0] * self.grid[1]


class MaskedAttention(nn.Module):
    """Multi-head attention whose q, k and v are multiplied by a channel mask, and its input rows by a patch mask."""

    mask: Tensor | None
    patch_mask: Tensor | None

    def __init__(self, config: VitSlimConfig) -> None:
        super().__init__()
        self.heads, self.head_dim, self.scale = config.heads, config.head_dim, config.scale
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.dim, config.dim)
        self.zeta = nn.Parameter(torch.ones(1, 1, config.zeta[0], 1, config.zeta[1]))
        self.patch_zeta = nn.Parameter(torch.full((1, config.tokens, 1), 3.0))
        self.register_buffer("mask", None, persistent=False)
        self.register_buffer("patch_mask", None, persistent=False)

    def patch_weights(self) -> Tensor:
        """What multiplies the normalised rows: [1, T, 1]."""
        return torch.tanh(self.patch_zeta) if self.patch_mask is None else self.patch_mask

    def forward(self, n: Tensor) -> Tensor:
        """The branch [B, T, C] of masked normalised rows [B, T, C]."""
        batch, tokens, dim = n.shape
        channels = self.zeta if self.mask is None else self.mask
        qkv = self.qkv(n).reshape(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = (qkv * channels).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))  # type: ignore[no-any-return]


class MaskedMlp(Mlp):
    """An MLP with a mask on the hidden units, after the activation."""

    mask: Tensor | None

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(dim, hidden)
        self.zeta = nn.Parameter(torch.ones(1, 1, hidden))
        self.register_buffer("mask", None, persistent=False)

    def hidden_mask(self) -> Tensor:
        """The raw zetas until a binary mask is fixed."""
        return self.zeta if self.mask is None else self.mask


class MaskedBlock(nn.Module):
    """A pre-norm block whose two branches share one patch mask."""

    def __init__(self, config: VitSlimConfig, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=config.eps)
        self.attn = MaskedAttention(config)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.eps)
        self.mlp = MaskedMlp(config.dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """The stream [B, T, C] after the block."""
        patches = self.attn.patch_weights()
        x = x + self.attn(self.norm1(x) * patches)
        return x + self.mlp(self.norm2(x) * patches)  # type: ignore[no-any-return]


class PreLogits(nn.Module):
    """A linear layer and tanh before the head (a representation layer)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, width)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, width] of [B, C]."""
        return torch.tanh(self.fc(x))


class MaskedVisionTransformer(nn.Module):
    """ViT-Slim: images [B, channels, height, width] to logits [B, classes]."""

    def __init__(self, config: VitSlimConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.channels, config.patch, config.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if config.distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.dim))
        self.blocks = nn.ModuleList(MaskedBlock(config, hidden) for hidden in config.hidden)
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)
        features = config.representation or config.dim
        self.pre_logits = PreLogits(config.dim, features) if config.representation else nn.Identity()
        self.head = nn.Linear(features, config.classes)
        self.head_dist = nn.Linear(config.dim, config.classes) if config.distilled else None

    def compress(self, masks: Sequence[Masks]) -> None:
        """Fix binary masks, one entry a layer; the zetas then play no part."""
        for block, mask in zip(self.blocks, masks, strict=True):
            assert isinstance(block, MaskedBlock)
            block.attn.mask = torch.from_numpy(mask.attn)[None, :, None, :]
            block.attn.patch_mask = torch.from_numpy(mask.patch)[None, :, None]
            block.mlp.mask = torch.from_numpy(mask.mlp)[None, None, :]

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes]."""
        x = self.patch_embed(images)
        prefix = self.cls_token if self.dist_token is None else torch.cat((self.cls_token, self.dist_token), 1)
        x = torch.cat((prefix.expand(len(x), -1, -1), x), 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.head_dist is not None:
            return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2  # type: ignore[no-any-return]
        return self.head(self.pre_logits(x[:, 0]))  # type: ignore[no-any-return]
