"""timm's own network as the reference that a compiled one is compared with, masked where masks are wanted.

Masks of channels and hidden units are multiplied into the weights before and behind what they mask: (n W^T + b) m =
n (W m)^T + b m. Masks of patches multiply the rows behind the norms of a block, by hooks. The modules and their forward
methods stay timm's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimc.ir import FloatArray, IndexArray
from slimc.models.network_masks import BlockMasks, NetworkMasks


class TimmReference(nn.Module):
    """A network of timm's that gives named outputs.

    `read` are the rows that its pool reads, none for all. `concatenated` is a classifier of the class token beside the
    mean of the patches, which timm has no module for.
    """

    def __init__(
        self, network: nn.Module, read: IndexArray | None = None, concatenated: nn.Linear | None = None
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.read = None if read is None else torch.from_numpy(read)
        self.concatenated = concatenated

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, channels, height, width]."""
        return self.outputs(images, ("logits",))["logits"]

    def outputs(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The outputs `names` (`slimc.ir.Output.name`) of images [B, channels, height, width]."""
        images = images.to(next(self.network.parameters()).dtype)
        plain = self.read is None and self.concatenated is None
        if tuple(names) == ("logits",) and plain:
            return {"logits": self.network(images)}
        found = self._blocks(images, names)
        if all(name in found for name in names):
            return found
        rows = self.network.forward_features(images)
        tokens = rows[:, self.network.num_prefix_tokens :]
        found |= {"tokens": tokens, "tokens:nchw": self._map(tokens)}
        if {"features", "logits"} & set(names):
            found |= self._pooled(rows)
        return {name: found[name] for name in names}

    def _pooled(self, rows: Tensor) -> dict[str, Tensor]:
        if self.concatenated is not None:
            features = torch.cat([rows[:, 0], rows[:, self.network.num_prefix_tokens :].mean(1)], dim=1)
            return {"features": features, "logits": self.concatenated(features)}
        if self.read is not None:
            rows = rows[:, self.read]
        return {"features": self.network.forward_head(rows, pre_logits=True), "logits": self.network.forward_head(rows)}

    def _blocks(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The rows behind blocks, of those `names` that want them."""
        wanted = sorted({int(name.removesuffix(":nchw").split(".")[1]) for name in names if name.startswith("blocks.")})
        if not wanted:
            return {}
        rows = self.network.forward_intermediates(images, indices=wanted, output_fmt="NLC", intermediates_only=True)
        plain = {
            f"blocks.{i}": each[0] if isinstance(each, tuple) else each for i, each in zip(wanted, rows, strict=True)
        }
        return {**plain, **{f"{name}:nchw": self._map(each) for name, each in plain.items()}}

    def _map(self, tokens: Tensor) -> Tensor:
        """Tokens [B, patches, C] as a map [B, C, height, width]."""
        return tokens.transpose(1, 2).reshape(len(tokens), -1, *self.network.patch_embed.grid_size)


def read_outputs(network: nn.Module, images: Tensor, names: tuple[str, ...]) -> Mapping[str, Tensor]:
    """The outputs `names` of a `TimmReference`."""
    assert isinstance(network, TimmReference)
    return network.outputs(images, names)


def masked_copy(network: nn.Module, masks: NetworkMasks) -> nn.Module:
    """A copy of timm's `network` under `masks`."""
    masked: Any = copy.deepcopy(network)
    with torch.no_grad():
        for block, own in zip(masked.blocks, masks.blocks, strict=True):
            _mask_attention(block.attn, own)
            _mask_hidden(block.mlp, own.hidden)
            if own.tokens is not None:
                _mask_rows(block, own.tokens)
        if masks.pool is not None:
            _mask_pool(masked.attn_pool, masks.pool)
    return masked  # type: ignore[no-any-return]


def _mask_attention(attention: Any, masks: BlockMasks) -> None:  # noqa: ANN401
    if masks.qk is not None:
        for kind in "qk":
            _scale_outputs(attention, kind, masks.qk)
    if masks.value is not None:
        _scale_outputs(attention, "v", masks.value)
        _columns(attention.proj, masks.value)


def _scale_outputs(attention: Any, kind: str, mask: FloatArray) -> None:  # noqa: ANN401
    """Multiply the queries, keys or values of every head by `mask` [H, d]."""
    factor = torch.from_numpy(mask.ravel())
    if getattr(attention, "qkv", None) is None:
        layer = getattr(attention, f"{kind}_proj")
        weight, bias = layer.weight, layer.bias
    else:
        part = "qkv".index(kind)
        weight = attention.qkv.weight.chunk(3)[part]
        bias = None if attention.qkv.bias is None else attention.qkv.bias.chunk(3)[part]
        if getattr(attention, "q_bias", None) is not None:
            bias = getattr(attention, f"{kind}_bias")
    _times(weight, bias, factor)


def _times(weight: Tensor, bias: Tensor | None, factor: Tensor) -> None:
    """Multiply the outputs of a linear layer by `factor`."""
    weight.mul_(factor[:, None].to(weight.dtype))
    if bias is not None:
        bias.mul_(factor.to(bias.dtype))


def _columns(layer: Any, mask: FloatArray) -> None:  # noqa: ANN401
    if isinstance(layer, nn.Linear):
        layer.weight.mul_(torch.from_numpy(mask.ravel()).to(layer.weight.dtype))


def _mask_hidden(mlp: Any, mask: FloatArray | None) -> None:  # noqa: ANN401
    """Hidden units that are off are zero before a norm that follows, and are not read behind it."""
    if mask is None:
        return
    factor = torch.from_numpy(mask)
    layers = [mlp.fc1_g, mlp.fc1_x] if hasattr(mlp, "fc1_g") else [mlp.fc1]
    for layer in layers:
        _times(layer.weight, layer.bias, factor.repeat(len(layer.weight) // len(factor)))
    _columns(mlp.fc2, mask)


def _mask_rows(block: Any, mask: FloatArray) -> None:  # noqa: ANN401
    factor = torch.from_numpy(mask)[:, None]

    def hide(_module: nn.Module, _inputs: object, rows: Tensor) -> Tensor:
        return rows * factor.to(rows.dtype)

    for norm in (block.norm1, block.norm2):
        norm.register_forward_hook(hide)


def _mask_pool(pool: Any, masks: BlockMasks) -> None:  # noqa: ANN401
    for part, mask in enumerate((masks.qk, masks.value)):
        if mask is not None:
            bias = None if pool.kv.bias is None else pool.kv.bias.chunk(2)[part]
            _times(pool.kv.weight.chunk(2)[part], bias, torch.from_numpy(mask.ravel()))
    if masks.value is not None:
        _columns(pool.proj, masks.value)
    _mask_hidden(pool.mlp, masks.hidden)
