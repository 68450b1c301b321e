"""Torch-Pruning's network of a given arithmetic, to compare with: timm's ViT, pruned as its own ViT example does.

Every width shrinks by one ratio: the residual stream, the FFNs and the width of all heads, whose number stays; the
importance is the magnitude of the weights. The ratio is searched for until the multiply-accumulates match.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_TRIES = 4
_CLOSE = 0.006


def pruned_network(name: str, macs_share: float) -> tuple[nn.Module, int]:
    """Timm's network `name` pruned to about `macs_share` of its MACs, and the MACs that it has then."""
    import timm

    network = timm.create_model(name).eval()
    dense = macs(network)
    low, high = 0.0, 1.0
    linear = network.patch_embed.num_patches * network.patch_embed.proj.weight.numel() / dense
    ratio = 1 - ((macs_share - linear * macs_share**0.5) / (1 - linear)) ** 0.5
    best: tuple[float, Any, int] | None = None
    for _ in range(_TRIES):
        network = _prune(name, ratio)
        share = macs(network) / dense
        error = abs(share - macs_share)
        if best is None or error < best[0]:
            best = error, network, macs(network)
        if error < _CLOSE:
            break
        low, high = (ratio, high) if share > macs_share else (low, ratio)
        guess = 1 - (1 - ratio) * (macs_share / share) ** 0.5
        ratio = guess if low < guess < high else (low + high) / 2
    assert best is not None
    return best[1], best[2]


def _prune(name: str, ratio: float) -> Any:
    import timm
    import torch
    import torch_pruning

    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    heads = {block.attn.qkv: block.attn.num_heads for block in network.blocks}
    for block in network.blocks:
        block.attn.fused_attn = False  # only then is the graph traced through the heads
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.MetaPruner(
            network,
            torch.zeros(1, 3, 224, 224),
            importance=torch_pruning.importance.GroupMagnitudeImportance(),
            pruning_ratio=ratio,
            ignored_layers=[network.head],
            num_heads=heads,
            prune_head_dims=True,
            round_to=2,
        )
        pruner.step()
    for block in network.blocks:
        attention = block.attn
        attention.head_dim = attention.qkv.out_features // (3 * attention.num_heads)
        attention.attn_dim = attention.num_heads * attention.head_dim
        attention.scale = attention.head_dim**-0.5
        attention.fused_attn = True
    return network


def macs(network: Any) -> int:
    """Multiply-accumulates of a timm ViT for one image, counted as slimc counts its own."""
    rows = network.patch_embed.num_patches
    total = rows * network.patch_embed.proj.weight.numel() + network.head.weight.numel()
    rows += network.num_prefix_tokens
    for block in network.blocks:
        layers = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
        total += rows * sum(layer.weight.numel() for layer in layers)
        total += 2 * rows * rows * block.attn.qkv.out_features // 3
    return int(total)
