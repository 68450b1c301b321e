"""AdaViT's networks in PyTorch (Meng et al., arXiv 2111.15668): the reference that everything else is measured against.

In eval mode a decision is logit > threshold; in training mode it is a Gumbel-sigmoid, straight-through (section 3.3), so
that gradients reach the policies. State dict keys are those of the released checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimc.ir import IndexArray
from slimc.models.modules import Mlp, PatchEmbed
from slimc.models.options import HeadEffect
from slimc.models.t2t_network import TokensToToken

TOKEN_THRESHOLD = 0.6
TEMPERATURE = 5.0


@dataclass(frozen=True)
class AdaVitConfig:
    """Geometry and flags of an AdaViT network.

    Blocks from `heads_from`, `branches_from` and `tokens_from` on decide about heads, branches and tokens; none never do.
    `head_effect` is what a head decision does beside attention: mask the FFN's inputs ("plain", ``--ada-head``), its
    hidden units ("v2", ``--ada-head-v2``), or nothing, an off head then passing values on ("attn", ``--ada-head-attn``).
    """

    image: tuple[int, int]
    patch: tuple[int, int]
    dim: int
    depth: int
    heads: int
    hidden: tuple[int, ...]
    classes: int
    eps: float
    qkv_bias: bool
    heads_from: int | None = None
    branches_from: int | None = None
    tokens_from: int | None = None
    head_effect: HeadEffect = "plain"
    tokens_with_mlp: bool = False
    norm_policy: bool = False
    heads_bias: bool = True
    branches_bias: bool = True
    tokens_bias: bool = True
    token_dim: int | None = None
    random_features: int = 0
    channels: int = 3

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.dim // self.heads

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        return self.image[0] // self.patch[0], self.image[1] // self.patch[1]

    @property
    def tokens(self) -> int:
        """All tokens N: cls and the patches."""
        return 1 + self.grid[0] * self.grid[1]

    def input_heads(self) -> IndexArray:
        """The head that channel j of the stream belongs to: [C]."""
        return np.arange(self.dim) // self.head_dim

    def unit_heads(self, layer: int) -> IndexArray:
        """The head that FFN unit u belongs to, (u // mlp_ratio) // d: [F]."""
        return np.arange(self.hidden[layer]) * self.dim // self.hidden[layer] // self.head_dim


@dataclass(frozen=True)
class Decisions:
    """What one block decided on B images: branches [B, 2], heads [B, H], tokens [B, N], one where it decides nothing.

    0 or 1, differentiable in training mode. `margin` [B] is the least distance of a logit from its threshold.
    """

    branches: Tensor
    heads: Tensor
    tokens: Tensor
    margin: Tensor


class Policy(nn.Module):
    """A linear layer whose logits are decisions: 1 where sigmoid(logit) > threshold."""

    def __init__(self, dim: int, decisions: int, threshold: float = 0.5, *, bias: bool = True) -> None:
        super().__init__()
        self.mlp_head = nn.Linear(dim, decisions, bias=bias)
        self.threshold = threshold
        self.logit_threshold = math.log(threshold / (1 - threshold))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Decisions [..., n] of [..., C], and the distance of their logits from the threshold."""
        logits = self.mlp_head(x)
        distance = (logits.detach() - self.logit_threshold).abs()
        if not self.training:
            return (logits > self.logit_threshold).to(x.dtype), distance
        # The difference of two Gumbel samples is a logistic one.
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((logits + torch.logit(uniform)) / TEMPERATURE)
        hard = (soft > self.threshold).to(x.dtype)
        return hard - soft.detach() + soft, distance


class AdaptiveAttention(nn.Module):
    """Attention with separate query, key and value layers, among the tokens and in the heads that are on."""

    def __init__(self, config: AdaVitConfig, *, selects_tokens: bool) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.head_dim, self.effect = config.heads, config.head_dim, config.head_effect
        self.query = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.key = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.value = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.token_select = Policy(dim, 1, TOKEN_THRESHOLD, bias=config.tokens_bias) if selects_tokens else None

    def forward(self, n: Tensor, heads: Tensor, tokens: Tensor) -> Tensor:
        """The branch [B, N, C] of normalised rows [B, N, C], given decisions [B, H] and [B, N]."""
        on = heads[:, :, None, None]
        query, key, value = (self._split(layer(n)) for layer in (self.query, self.key, self.value))
        if self.effect != "attn":
            query, key, value = query * on, key * on, value * on
        scores = (query @ key.transpose(-2, -1)) * self.head_dim**-0.5
        weights = scores.masked_fill(~visible(tokens)[:, None], -math.inf).softmax(-1)
        mixed = (weights @ value) * on
        if self.effect == "attn":
            mixed = mixed + value * (1 - on)
        rows = self.proj(mixed.transpose(1, 2).flatten(2))
        return rows * tokens[:, :, None]  # type: ignore[no-any-return]

    def _split(self, rows: Tensor) -> Tensor:
        return rows.reshape(*rows.shape[:2], self.heads, self.head_dim).transpose(1, 2)


def visible(tokens: Tensor) -> Tensor:
    """Which token sees which [B, N, N]: those that are on one another, the others themselves. Passes no gradient."""
    on = tokens.detach() > 0.5
    return (on[:, :, None] & on[:, None, :]) | torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)


class AdaptiveBlock(nn.Module):
    """A pre-norm block that decides for each image which of its branches and heads run, and on which tokens."""

    def __init__(self, config: AdaVitConfig, layer: int) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.gated = True
        self.norm1 = nn.LayerNorm(dim, eps=config.eps)
        self.attn = AdaptiveAttention(config, selects_tokens=_decides(config.tokens_from, layer))
        self.norm2 = nn.LayerNorm(dim, eps=config.eps)
        self.mlp = Mlp(dim, config.hidden[layer])
        decides_heads, decides_branches = _decides(config.heads_from, layer), _decides(config.branches_from, layer)
        self.head_select = Policy(dim, config.heads, bias=config.heads_bias) if decides_heads else None
        self.layer_select = Policy(dim, 2, bias=config.branches_bias) if decides_branches else None
        normalises = config.norm_policy and (decides_heads or decides_branches)
        self.norm_policy = nn.LayerNorm(dim, eps=config.eps) if normalises else None
        self.input_heads = config.input_heads().tolist()
        self.unit_heads = config.unit_heads(layer).tolist()

    def forward(self, x: Tensor) -> tuple[Tensor, Decisions]:
        """The stream [B, N, C] after the block, and its decisions."""
        n = self.norm1(x)
        decided = self.decide(x, n)
        attention, mlp = decided.branches[:, :, None, None].unbind(1)
        x = x + attention * self.attn(n, decided.heads, decided.tokens)
        added = self.feed_forward(self.norm2(x), decided.heads)
        if self.config.tokens_with_mlp:
            added = added * decided.tokens[:, :, None]
        return x + mlp * added, decided

    def decide(self, x: Tensor, n: Tensor) -> Decisions:
        """The decisions on the entering stream `x` [B, N, C] with normalised rows `n`."""
        p = x[:, 0] if self.norm_policy is None else self.norm_policy(x[:, 0])
        one, far = x.new_ones(len(x), 1), x.new_full((len(x), 1), math.inf)
        branches, branches_margin = self._ask(self.layer_select, p, 2)
        heads, heads_margin = self._ask(self.head_select, p, self.config.heads)
        tokens, tokens_margin = x.new_ones(x.shape[:2]), far
        if self.gated and self.attn.token_select is not None:
            patches, distance = self.attn.token_select(n[:, 1:])
            tokens, tokens_margin = torch.cat((one, patches[..., 0]), 1), distance[..., 0]
        margin = torch.cat((branches_margin, heads_margin, tokens_margin), 1).amin(1)
        return Decisions(branches, heads, tokens, margin)

    def _ask(self, policy: Policy | None, p: Tensor, decisions: int) -> tuple[Tensor, Tensor]:
        if policy is None or not self.gated:
            return p.new_ones(len(p), decisions), p.new_full((len(p), 1), math.inf)
        return policy(p)  # type: ignore[no-any-return]

    def feed_forward(self, n: Tensor, heads: Tensor) -> Tensor:
        """The FFN [B, N, C] of normalised rows, with what the head decisions [B, H] do to it."""
        if self.config.head_effect == "plain":
            n = n * heads[:, None, self.input_heads]
        hidden = F.gelu(self.mlp.fc1(n))
        if self.config.head_effect == "v2":
            hidden = hidden * heads[:, None, self.unit_heads]
        return self.mlp.fc2(hidden)  # type: ignore[no-any-return]


def _decides(first: int | None, layer: int) -> bool:
    return first is not None and layer >= first


class AdaptiveVisionTransformer(nn.Module):
    """AdaViT: images [B, channels, height, width] to logits [B, classes]."""

    def __init__(self, config: AdaVitConfig) -> None:
        super().__init__()
        self.config = config
        if config.token_dim is None:
            self.patch_embed = PatchEmbed(config.channels, config.patch, config.dim)
        else:
            self.tokens_to_token = TokensToToken(config.channels, config.dim, config.token_dim, config.random_features)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.dim), requires_grad=config.token_dim is None)
        self.blocks = nn.ModuleList(AdaptiveBlock(config, layer) for layer in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.head = nn.Linear(config.dim, config.classes)

    def open_gates(self) -> None:
        """Decide nothing from here on: every branch, head and token is on."""
        for block in self.blocks:
            assert isinstance(block, AdaptiveBlock)
            block.gated = False

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes]."""
        return self.run(images)[0]

    def run(self, images: Tensor) -> tuple[Tensor, tuple[Decisions, ...]]:
        """Logits [B, classes], and the decisions of every block."""
        rows = self.patch_embed(images) if self.config.token_dim is None else self.tokens_to_token(images)
        x = torch.cat((self.cls_token.expand(len(rows), -1, -1), rows), 1) + self.pos_embed
        decisions = []
        for block in self.blocks:
            x, decided = block(x)
            decisions.append(decided)
        return self.head(self.norm(x)[:, 0]), tuple(decisions)
