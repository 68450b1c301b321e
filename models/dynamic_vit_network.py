"""DynamicViT in PyTorch, trainable: the reference that everything else is measured against (arXiv 2106.02034).

In evaluation tokens really leave, the K of the highest score staying. In training they stay, decisions are sampled with a
hard Gumbel-softmax and attention hides the dropped ones, so that gradients reach the predictors. State dict keys are
those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimc.models.modules import Mlp, PatchEmbed

# Of a predictor's logits [B, N, 2], keep and drop, the decisions [B, N] (1 keeps) for a stage.
Decide = Callable[[Tensor, int], Tensor]

# The largest exponent of a hidden key relative to the visible ones: finite in float32, and its gradient too.
_EXPONENT_LIMIT = 30.0


@dataclass(frozen=True)
class DynamicVitConfig:
    """Geometry of a DynamicViT network.

    `keep` are the patches kept by each predictor, which stands before the block of the same entry in `pruning_loc`. A
    predictor that would keep all patches that are left keeps them in evaluation, and its scores play no part.
    LV-ViT: `stem` are its convolutions as (channels, kernel), `auxiliary` says that a second head reads the patches, and
    `skip_lam` divides the residual branches.
    """

    image: tuple[int, int]
    patch: tuple[int, int]
    dim: int
    depth: int
    heads: int
    hidden: tuple[int, ...]
    classes: int
    pruning_loc: tuple[int, ...]
    keep: tuple[int, ...]
    qkv_bias: bool = True
    stem: tuple[tuple[int, int], ...] = ()
    auxiliary: bool = False
    skip_lam: float = 1.0
    eps: float = 1e-6
    predictor_eps: float = 1e-5
    batch_norm_eps: float = 1e-5
    channels: int = 3

    def stage(self, layer: int) -> int | None:
        """The predictor before the block `layer` that drops patches in evaluation; none where there is none."""
        if layer not in self.pruning_loc:
            return None
        stage = self.pruning_loc.index(layer)
        left = min((self.patches, *self.keep[:stage]))
        return stage if self.keep[stage] < left else None

    @property
    def patches(self) -> int:
        """Patches of an image before any is dropped."""
        return (self.image[0] // self.patch[0]) * (self.image[1] // self.patch[1])


@dataclass(frozen=True, eq=False)
class Selected:
    """What evaluation computes: logits [B, classes], and the patches [B, K] that each dropping stage kept, best first.

    `margins` [B] tell how sure that was: the smallest gap between the last score kept and the first dropped at any stage,
    in units of the standard deviation of the image's scores there; infinite where nothing was dropped.
    """

    logits: Tensor
    kept: tuple[Tensor, ...]
    margins: Tensor


@dataclass(frozen=True, eq=False)
class Masked:
    """What training computes: logits [B, classes] of cls, those of every patch [B, N, classes] where there is an auxiliary
    head, the final features [B, N, C] of the patches, and the decisions [B, N] of each stage.
    """

    logits: Tensor
    auxiliary: Tensor | None
    features: Tensor
    decisions: tuple[Tensor, ...]


class ScorePredictor(nn.Module):
    """Two logits a patch, keep and drop, from the patch and from the mean over the patches that are kept."""

    def __init__(self, config: DynamicVitConfig) -> None:
        super().__init__()
        dim = config.dim
        self.in_conv = nn.Sequential(nn.LayerNorm(dim, eps=config.predictor_eps), nn.Linear(dim, dim), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 2)
        )

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        """Logits [B, N, 2] of patches [B, N, C], of which `kept` [B, N] count."""
        local, context = self.in_conv(x).chunk(2, dim=-1)
        weight = kept.unsqueeze(-1)
        mean = (context * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        return self.out_conv(torch.cat((local, mean.expand_as(context)), -1))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head attention that can hide keys softly, as the training of the predictors needs it."""

    def __init__(self, config: DynamicVitConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.dim // config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, n: Tensor, kept: Tensor | None = None) -> Tensor:
        """The branch [B, T, C] of normalised rows [B, T, C]; `kept` [B, T] weighs the keys, none for all."""
        batch, tokens, dim = n.shape
        q, k, v = self.qkv(n).reshape(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v) if kept is None else _weighted_attention(q, k, v, kept)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))  # type: ignore[no-any-return]


def _weighted_attention(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
    """Attention [B, H, T, d] with A_ij = exp(P_ij) G_ij / sum_k exp(P_ik) G_ik, where G_ij is kept_j, and 1 for i = j."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    own = torch.eye(kept.shape[1], dtype=kept.dtype, device=kept.device)
    weights = (kept[:, None, :] * (1 - own) + own).unsqueeze(1)
    peak = scores.masked_fill(weights == 0, -torch.inf).amax(-1, keepdim=True).detach()
    exponentials = (scores - peak).clamp(max=_EXPONENT_LIMIT).exp() * weights
    return exponentials / exponentials.sum(-1, keepdim=True) @ v  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm block whose branches are divided by `skip_lam`."""

    def __init__(self, config: DynamicVitConfig, hidden: int) -> None:
        super().__init__()
        self.skip_lam = config.skip_lam
        self.norm1 = nn.LayerNorm(config.dim, eps=config.eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.eps)
        self.mlp = Mlp(config.dim, hidden)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """The stream [B, T, C] after the block; `kept` [B, T] weighs the keys, none for all."""
        x = x + self.attn(self.norm1(x), kept) / self.skip_lam
        return x + self.mlp(self.norm2(x)) / self.skip_lam  # type: ignore[no-any-return]


class ConvStem(nn.Module):
    """LV-ViT's stem: three convolutions with BatchNorm and ReLU, the first of stride 2, then patches of what is left."""

    def __init__(self, config: DynamicVitConfig) -> None:
        super().__init__()
        channels = config.channels
        for i, (out, kernel) in enumerate(config.stem, 1):
            stride = 2 if i == 1 else 1
            convolution = nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2, bias=False)
            self.add_module(f"conv{i}", convolution)
            self.add_module(f"bn{i}", nn.BatchNorm2d(out, eps=config.batch_norm_eps))
            channels = out
        kernel_size = (config.patch[0] // 2, config.patch[1] // 2)
        self.proj = nn.Conv2d(channels, config.dim, kernel_size, stride=kernel_size)
        self.layers = len(config.stem)

    def forward(self, images: Tensor) -> Tensor:
        """Patches [B, N, C] of images [B, channels, height, width]."""
        x = images
        for i in range(1, self.layers + 1):
            x = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x)))
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class DynamicVisionTransformer(nn.Module):
    """DynamicViT: images [B, channels, height, width] to logits [B, classes], or to `Masked` in training mode."""

    def __init__(self, config: DynamicVitConfig) -> None:
        super().__init__()
        self.config = config
        if config.stem:
            self.patch_embed: nn.Module = ConvStem(config)
        else:
            self.patch_embed = PatchEmbed(config.channels, config.patch, config.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.patches, config.dim))
        self.blocks = nn.ModuleList(Block(config, hidden) for hidden in config.hidden)
        self.score_predictor = nn.ModuleList(ScorePredictor(config) for _ in config.pruning_loc)
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.head = nn.Linear(config.dim, config.classes)
        self.aux_head = nn.Linear(config.dim, config.classes) if config.auxiliary else None

    def forward(self, images: Tensor) -> Tensor | Masked:
        """Logits in evaluation mode; in training mode what the loss reads, with sampled decisions."""
        if self.training:
            return self.mask(images, sample_decisions)
        return self.select(images).logits

    def select(self, images: Tensor) -> Selected:
        """Evaluate, and tell which patches each stage kept.

        Ranked by keep - drop, of which the released code's log-softmax is a rising function: the same order, but where
        that saturates in float32. Of equal scores the earlier row is kept; a NaN counts as the highest.
        """
        x = self._embed(images)
        patches = torch.arange(x.shape[1] - 1, device=x.device).expand(len(x), -1)
        kept, margins = [], torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        for i, block in enumerate(self.blocks):
            stage = self.config.stage(i)
            if stage is not None:
                logits = self.score_predictor[stage](x[:, 1:], torch.ones_like(patches, dtype=x.dtype))
                scores, order = (logits[..., 0] - logits[..., 1]).sort(dim=1, descending=True, stable=True)
                keep = self.config.keep[stage]
                margins = margins.minimum((scores[:, keep - 1] - scores[:, keep]) / scores.std(1))
                order = order[:, :keep]
                patches = patches.gather(1, order)
                rows = (order + 1).unsqueeze(-1).expand(-1, -1, x.shape[-1])
                x = torch.cat((x[:, :1], x.gather(1, rows)), 1)
                kept.append(patches)
            x = block(x)
        x = self.norm(x)
        logits = self.head(x[:, 0])
        if self.aux_head is not None:
            logits = logits + 0.5 * self.aux_head(x[:, 1:]).amax(1)
        return Selected(logits, tuple(kept), margins)

    def mask(self, images: Tensor, decide: Decide) -> Masked:
        """Run with every token in place, hidden from attention once `decide` has dropped it; differentiable."""
        x = self._embed(images)
        kept = x.new_ones(x.shape[:2])
        decisions = []
        for i, block in enumerate(self.blocks):
            if i in self.config.pruning_loc:
                stage = self.config.pruning_loc.index(i)
                logits = self.score_predictor[stage](x[:, 1:], kept[:, 1:])
                decisions.append(decide(logits, stage) * kept[:, 1:])
                kept = torch.cat((kept[:, :1], decisions[-1]), 1)
            x = block(x, kept if decisions else None)
        x = self.norm(x)
        auxiliary = None if self.aux_head is None else self.aux_head(x[:, 1:])
        return Masked(self.head(x[:, 0]), auxiliary, x[:, 1:], tuple(decisions))

    def _embed(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        return torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.pos_embed


def sample_decisions(logits: Tensor, stage: int) -> Tensor:  # noqa: ARG001 - every stage samples alike
    """Hard decisions [B, N] whose gradients are those of a Gumbel-softmax of temperature 1 (arXiv 1611.01144)."""
    return F.gumbel_softmax(logits, hard=True, dim=-1)[..., 0]
