"""The AdaViT front end: a checkpoint to its geometry, flags, IR and PyTorch network (Meng et al., arXiv 2111.15668).

Backbones are DeiT (convolutional patch embedding) and T2T-ViT (performer stem); the state dict tells which, and where
decisions are made. What it cannot tell comes from the training arguments in the file or from options: the number of heads
where no head policy tells it (``--num-heads``), ``--ada-head``, ``--ada-token-with-mlp``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slimc import ir
from slimc.errors import CheckpointError, OptionError
from slimc.files.checkpoint import Checkpoint
from slimc.ir.gate_usage import BlockUsage, Usage
from slimc.models import ada_vit_flags as flags
from slimc.models.ada_vit_network import TOKEN_THRESHOLD, AdaptiveVisionTransformer, AdaVitConfig
from slimc.models.geometry import image_size
from slimc.models.options import AdaVitOptions
from slimc.models.preprocessing import input_size, read_preprocessing
from slimc.models.system import Network, System, Trace, Variant
from slimc.models.t2t_network import SPLITS
from slimc.models.weights import Weights

_T2T_PATCH = math.prod(stride for _, stride, _ in SPLITS)


def load(checkpoint: Checkpoint, options: AdaVitOptions, system: System) -> Network:
    """Read an AdaViT checkpoint.

    Raises:
        CheckpointError: the state dict is not of an AdaViT network, or was trained with a flag that slimc cannot compile.
        OptionError: an option is missing or contradicts the checkpoint.
    """
    weights = Weights(checkpoint.path, checkpoint.state)
    config = read_config(weights, checkpoint.path, checkpoint.args, options)
    masked = to_ir(weights, config)
    weights.finish()
    preprocessing, warnings = read_preprocessing(checkpoint, config.image, options, channels=config.channels)
    return Network(
        system=system,
        path=checkpoint.path,
        sha256=checkpoint.sha256,
        masked=masked,
        dense=without_gates(masked),
        preprocessing=preprocessing,
        pytorch=lambda variant: build_network(checkpoint, config, variant),
        trace=trace,
        warnings=warnings,
        settings={
            "heads_from": config.heads_from,
            "branches_from": config.branches_from,
            "tokens_from": config.tokens_from,
            "head_effect": config.head_effect,
            "tokens_with_mlp": config.tokens_with_mlp,
            "norm_policy": config.norm_policy,
            "ema": checkpoint.ema,
        },
    )


def read_config(weights: Weights, path: Path, args: Mapping[str, Any], options: AdaVitOptions) -> AdaVitConfig:
    """Geometry and flags from the shapes, the training arguments and the options."""
    flags.refuse_unsupported(path, args)
    dim, depth = weights.shape("cls_token", axes=3)[-1], weights.count("blocks")
    if depth == 0:
        raise CheckpointError(f"{path}: the state dict has no blocks.0")
    heads_from, branches_from, tokens_from = (
        flags.first_block(weights, path, depth, name) for name in ("head_select", "layer_select", "attn.token_select")
    )
    found = {"ada_head": heads_from, "ada_layer": branches_from, "ada_token": tokens_from}
    flags.check_flags(path, args, found)
    t2t = "tokens_to_token.project.weight" in weights
    patch = (_T2T_PATCH, _T2T_PATCH) if t2t else _patch(weights, path)
    patches = weights.shape("pos_embed", axes=3)[1] - 1
    last = f"blocks.{depth - 1}"
    return AdaVitConfig(
        image=image_size(patches, patch, input_size(args), options.img_size),
        patch=patch,
        dim=dim,
        depth=depth,
        heads=_heads(weights, path, dim, f"{last}.head_select.mlp_head.weight", options),
        hidden=tuple(weights.shape(f"blocks.{layer}.mlp.fc1.weight", axes=2)[0] for layer in range(depth)),
        classes=weights.shape("head.weight", axes=2)[0],
        eps=1e-5 if t2t else 1e-6,
        qkv_bias="blocks.0.attn.query.bias" in weights,
        heads_from=heads_from,
        branches_from=branches_from,
        tokens_from=tokens_from,
        head_effect=flags.head_effect(path, args, options, decides=heads_from is not None),
        tokens_with_mlp=flags.tokens_with_mlp(path, args, options, decides=tokens_from is not None),
        norm_policy=flags.norm_policy(weights, path, args),
        heads_bias=f"{last}.head_select.mlp_head.bias" in weights,
        branches_bias=f"{last}.layer_select.mlp_head.bias" in weights,
        tokens_bias=f"{last}.attn.token_select.mlp_head.bias" in weights,
        channels=_channels(weights) if t2t else weights.image_channels("patch_embed.proj.weight"),
        token_dim=weights.shape("tokens_to_token.attention1.w", axes=2)[1] if t2t else None,
        random_features=weights.shape("tokens_to_token.attention1.w", axes=2)[0] if t2t else 0,
    )


def _channels(weights: Weights) -> int:
    """Channels of the image that T2T-ViT's first windows cut up."""
    side = SPLITS[0][0]
    entries = weights.shape("tokens_to_token.attention1.norm1.weight", axes=1)[0]
    return weights.check_channels("tokens_to_token.attention1.norm1.weight", entries / side**2)


def _patch(weights: Weights, path: Path) -> tuple[int, int]:
    shape = weights.shape("patch_embed.proj.weight")
    if len(shape) != 4:
        raise CheckpointError(f"{path}: patch_embed.proj.weight has the shape {list(shape)}, expected four axes")
    return shape[2], shape[3]


def _heads(weights: Weights, path: Path, dim: int, key: str, options: AdaVitOptions) -> int:
    """Number of heads: the head policy's outputs, else ``--num-heads``."""
    if key in weights:
        heads = weights.shape(key)[0]
        if options.num_heads not in (None, heads):
            raise OptionError(
                f"--num-heads: {options.num_heads} contradicts the checkpoint, whose head policies have {heads} heads"
            )
    elif options.num_heads is None:
        raise OptionError(f"--num-heads: {path} has no head policy, so nothing tells the number of heads; give it")
    else:
        heads = options.num_heads
    if heads < 1 or dim % heads:
        raise OptionError(f"--num-heads: {heads} heads do not divide a width of {dim}")
    return heads


def to_ir(weights: Weights, config: AdaVitConfig) -> ir.Model:
    """The masked network in IR; its arrays share memory with the checkpoint."""
    dim = config.dim
    position = weights.take("pos_embed", (1, config.tokens, dim))[0]
    stem, patch = _stem(weights, config)
    embedding = ir.Embedding(
        patch=patch,
        prefix=weights.take("cls_token", (1, 1, dim))[0],
        prefix_position=position[:1],
        patch_position=position[1:],
        stem=stem,
    )
    blocks = tuple(_block(weights, config, layer) for layer in range(config.depth))
    classifier = ir.Classifier(
        weights.norm("norm", dim, config.eps), (0,), (weights.linear("head", config.classes, dim),)
    )
    return ir.Model(config.image, embedding, blocks, classifier)


def _stem(weights: Weights, config: AdaVitConfig) -> tuple[tuple[ir.SoftSplit, ...], ir.PatchEmbed]:
    dim, width = config.dim, config.token_dim
    if width is None:
        weight = weights.take("patch_embed.proj.weight", (dim, config.channels, *config.patch))
        return (), ir.PatchEmbed(weight, weights.take("patch_embed.proj.bias", (dim,)))
    stages, channels = [], config.channels
    for i, (side, stride, padding) in enumerate(SPLITS):
        channels *= side**2
        last = i == len(SPLITS) - 1
        performer = None if last else _performer(weights, f"tokens_to_token.attention{i + 1}", channels, config)
        stages.append(ir.SoftSplit(side, stride, padding, performer))
        channels = channels if last else width
    project = weights.linear("tokens_to_token.project", dim, channels)
    return tuple(stages), ir.PatchEmbed(project.weight[:, :, None, None], project.bias)


def _performer(weights: Weights, name: str, into: int, config: AdaVitConfig) -> ir.Performer:
    width = config.token_dim or 0
    fused = weights.linear(f"{name}.kqv", 3 * width, into)
    assert fused.bias is not None
    key, query, value = (
        ir.Linear(weight, bias) for weight, bias in zip(np.split(fused.weight, 3), np.split(fused.bias, 3), strict=True)
    )
    return ir.Performer(
        norm1=weights.norm(f"{name}.norm1", into, 1e-5),
        key=key,
        query=query,
        value=value,
        features=weights.take(f"{name}.w", (config.random_features, width)),
        output=weights.linear(f"{name}.proj", width, width),
        norm2=weights.norm(f"{name}.norm2", width, 1e-5),
        up=weights.linear(f"{name}.mlp.0", width, width),
        down=weights.linear(f"{name}.mlp.2", width, width),
    )


def _block(weights: Weights, config: AdaVitConfig, layer: int) -> ir.Block:
    name, dim, hidden = f"blocks.{layer}", config.dim, config.hidden[layer]
    gates = _gates(weights, config, layer)
    has_heads = gates is not None and gates.heads is not None
    attention = ir.Attention(
        norm=weights.norm(f"{name}.norm1", dim, config.eps),
        heads=_split_heads(weights, config, f"{name}.attn", gated=has_heads),
        output_bias=weights.take(f"{name}.attn.proj.bias", (dim,)),
        scale=float(config.head_dim**-0.5),
    )
    mlp = ir.Mlp(
        norm=weights.norm(f"{name}.norm2", dim, config.eps),
        up=weights.linear(f"{name}.mlp.fc1", hidden, dim),
        down=weights.linear(f"{name}.mlp.fc2", dim, hidden),
        input_gates=config.input_heads() if has_heads and config.head_effect == "plain" else None,
        unit_gates=config.unit_heads(layer) if has_heads and config.head_effect == "v2" else None,
    )
    return ir.Block(name, attention, mlp, gates=gates)


def _split_heads(weights: Weights, config: AdaVitConfig, name: str, *, gated: bool) -> tuple[ir.Head, ...]:
    """Heads of three separate projections, whose rows are laid out as (H, d)."""
    dim, width = config.dim, config.head_dim
    layers = [weights.linear(f"{name}.{part}", dim, dim, bias=config.qkv_bias) for part in ("query", "key", "value")]
    columns = weights.take(f"{name}.proj.weight", (dim, dim))

    heads = []
    for h in range(config.heads):
        rows = slice(h * width, (h + 1) * width)
        query, key, value = (ir.keep_outputs(layer, rows) for layer in layers)
        heads.append(ir.Head(query, key, value, columns[:, rows], gate=h if gated else None))
    return tuple(heads)


def _gates(weights: Weights, config: AdaVitConfig, layer: int) -> ir.Gates | None:
    """What block `layer` decides; none where it decides nothing."""
    name, dim = f"blocks.{layer}", config.dim
    branches = heads = norm = tokens = None
    if config.branches_from is not None and layer >= config.branches_from:
        branches = weights.linear(f"{name}.layer_select.mlp_head", 2, dim, bias=config.branches_bias)
    if config.heads_from is not None and layer >= config.heads_from:
        heads = weights.linear(f"{name}.head_select.mlp_head", config.heads, dim, bias=config.heads_bias)
    if config.norm_policy and (branches or heads):
        norm = weights.norm(f"{name}.norm_policy", dim, config.eps)
    else:
        # A block that decides nothing may hold the norm of its policy all the same.
        for kind in ("weight", "bias"):
            weights.skip(f"{name}.norm_policy.{kind}")
    if config.tokens_from is not None and layer >= config.tokens_from:
        score = weights.linear(f"{name}.attn.token_select.mlp_head", 1, dim, bias=config.tokens_bias)
        threshold = math.log(TOKEN_THRESHOLD / (1 - TOKEN_THRESHOLD))
        tokens = ir.TokenGate(weights.norm(f"{name}.norm1", dim, config.eps), score, threshold)
    if branches is None and heads is None and tokens is None:
        return None
    return ir.Gates(
        attention=None if branches is None else ir.keep_outputs(branches, slice(0, 1)),
        mlp=None if branches is None else ir.keep_outputs(branches, slice(1, 2)),
        heads=heads,
        tokens=tokens,
        norm=norm,
        tokens_gate_mlp=config.tokens_with_mlp and tokens is not None,
        off_heads="value" if config.head_effect == "attn" else "zero",
    )


def without_gates(model: ir.Model) -> ir.Model:
    """`model` with every gate at one."""
    blocks = []
    for block in model.blocks:
        assert isinstance(block.attention, ir.Attention)
        assert isinstance(block.mlp, ir.Mlp)
        heads = tuple(replace(head, gate=None) for head in block.attention.heads)
        mlp = replace(block.mlp, input_gates=None, unit_gates=None)
        blocks.append(replace(block, attention=replace(block.attention, heads=heads), mlp=mlp, gates=None))
    return replace(model, blocks=tuple(blocks))


def trace(network: torch.nn.Module, images: torch.Tensor) -> Trace:
    """Logits of an AdaViT network, and what it decided to run."""
    assert isinstance(network, AdaptiveVisionTransformer)
    logits, decisions = network.run(images)
    blocks = []
    for block in decisions:
        attention, mlp = (block.branches > 0.5).numpy().T
        blocks.append(BlockUsage(attention, mlp, (block.heads > 0.5).numpy(), (block.tokens > 0.5).numpy()))
    margin = torch.stack([block.margin for block in decisions]).amin(0)
    return Trace(logits, usage=Usage(tuple(blocks), margin.numpy()))


def build_network(checkpoint: Checkpoint, config: AdaVitConfig, variant: Variant) -> AdaptiveVisionTransformer:
    """The PyTorch network in eval mode, sharing memory with the checkpoint; "dense" has every gate at one."""
    with torch.device("meta"):
        network = AdaptiveVisionTransformer(config)
    state = {key: checkpoint.state[key].to(torch.float32) for key in network.state_dict()}
    network.load_state_dict(state, assign=True)
    if variant == "dense":
        network.open_gates()
    return network.eval()
