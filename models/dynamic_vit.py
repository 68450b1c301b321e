"""The DynamicViT front end: a checkpoint, DeiT- or LV-ViT-based, to its geometry, IR and PyTorch network.

The family and most of the geometry follow from the names and shapes; `slimc.models.dynamic_vit_settings` finds the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from slimc import ir
from slimc.errors import CheckpointError
from slimc.files.checkpoint import Checkpoint
from slimc.models.dynamic_vit_network import DynamicVisionTransformer, DynamicVitConfig
from slimc.models.dynamic_vit_settings import (
    Shapes,
    count_predictors,
    keep_ratios,
    number_of_heads,
    pruning_locations,
    residual_divisor,
)
from slimc.models.geometry import image_size
from slimc.models.options import DynamicVitOptions
from slimc.models.preprocessing import input_size, read_preprocessing
from slimc.models.system import Network, System, Trace, Variant
from slimc.models.weights import Weights, split_heads

# What LV-ViT adds to the logits of cls: this share of the largest logit over the patches.
_AUXILIARY_SHARE = 0.5
_STEM_STRIDE = 2


def load(checkpoint: Checkpoint, options: DynamicVitOptions, system: System) -> Network:
    """Read a DynamicViT checkpoint.

    Raises:
        CheckpointError: the state dict is not of a DynamicViT network.
        BudgetError: the keep rate is missing or cannot be used.
        OptionError: an option contradicts the shapes, or one that is needed is missing.
    """
    weights = Weights(checkpoint.path, checkpoint.state)
    shapes = read_shapes(weights, checkpoint)
    ratios = keep_ratios(shapes, checkpoint.args, options)
    config = read_config(weights, shapes, ratios, checkpoint.args, options)
    masked = to_ir(weights, config)
    weights.finish()
    preprocessing, warnings = read_preprocessing(checkpoint, config.image, options, channels=config.channels)
    return Network(
        system=system,
        path=checkpoint.path,
        sha256=checkpoint.sha256,
        masked=masked,
        dense=without_selection(masked),
        preprocessing=preprocessing,
        pytorch=lambda variant: build_network(checkpoint, config, variant),
        settings={"keep_ratios": list(ratios), "keep": list(config.keep), "pruning_loc": list(config.pruning_loc)},
        details={"family": shapes.family, "skip_lam": config.skip_lam},
        trace=trace,
        warnings=warnings,
    )


def trace(network: torch.nn.Module, images: torch.Tensor) -> Trace:
    """Logits, the patches that each stage of a DynamicViT network keeps, and how surely it does so."""
    assert isinstance(network, DynamicVisionTransformer)
    selected = network.select(images)
    return Trace(selected.logits, selected.kept, selected.margins)


def read_shapes(weights: Weights, checkpoint: Checkpoint) -> Shapes:
    """Family, width, depth, predictors and patches."""
    depth = weights.count("blocks")
    return Shapes(
        path=checkpoint.path,
        family="LV-ViT" if "patch_embed.conv1.weight" in weights else "DeiT",
        dim=weights.shape("cls_token", axes=3)[-1],
        depth=depth,
        predictors=count_predictors(checkpoint.path, weights.count("score_predictor"), depth),
        patches=weights.shape("pos_embed", axes=3)[1] - 1,
    )


def read_config(
    weights: Weights, shapes: Shapes, ratios: tuple[float, ...], args: Mapping[str, Any], options: DynamicVitOptions
) -> DynamicVitConfig:
    """Geometry from the shapes, the training arguments and the options.

    A stage keeps int(patches * ratio) patches, of all patches and not of those that are left.
    """
    stem = _stem_shapes(weights, shapes)
    stride = _STEM_STRIDE if stem else 1
    kernel = weights.shape("patch_embed.proj.weight", axes=4)[2:]
    patch = (kernel[0] * stride, kernel[1] * stride)
    return DynamicVitConfig(
        image=image_size(shapes.patches, patch, input_size(args), options.img_size),
        patch=patch,
        dim=shapes.dim,
        depth=shapes.depth,
        heads=number_of_heads(shapes, options),
        hidden=tuple(weights.shape(f"blocks.{layer}.mlp.fc1.weight", axes=2)[0] for layer in range(shapes.depth)),
        classes=weights.shape("head.weight", axes=2)[0],
        pruning_loc=pruning_locations(shapes, args, options),
        keep=tuple(int(shapes.patches * ratio) for ratio in ratios),
        qkv_bias="blocks.0.attn.qkv.bias" in weights,
        stem=stem,
        auxiliary="aux_head.weight" in weights,
        skip_lam=residual_divisor(shapes, options),
        channels=weights.image_channels("patch_embed.conv1.weight" if stem else "patch_embed.proj.weight"),
        eps=1e-5 if shapes.family == "LV-ViT" else 1e-6,
    )


def _stem_shapes(weights: Weights, shapes: Shapes) -> tuple[tuple[int, int], ...]:
    """Channels and kernel of every convolution of the stem."""
    stem: list[tuple[int, int]] = []
    while (key := f"patch_embed.conv{len(stem) + 1}.weight") in weights:
        shape = weights.shape(key, axes=4)
        if shape[2] != shape[3] or shape[2] % 2 == 0:
            raise CheckpointError(
                f"{shapes.path}: {key} has the shape {list(shape)}, expected a square kernel of odd size"
            )
        stem.append((shape[0], shape[2]))
    return tuple(stem)


def to_ir(weights: Weights, config: DynamicVitConfig) -> ir.Model:
    """The network in IR, every token in place and the unselected ones hidden; shares memory with the checkpoint."""
    dim = config.dim
    stem = _stem(weights, config)
    kernel = weights.shape("patch_embed.proj.weight", axes=4)[2:]
    position = weights.take("pos_embed", (1, 1 + config.patches, dim))[0]
    embedding = ir.Embedding(
        patch=ir.PatchEmbed(
            weight=weights.take(
                "patch_embed.proj.weight", (dim, config.stem[-1][0] if stem else config.channels, *kernel)
            ),
            bias=weights.take("patch_embed.proj.bias", (dim,)),
        ),
        prefix=weights.take("cls_token", (1, 1, dim))[0],
        prefix_position=position[:1],
        patch_position=position[1:],
        stem=stem,
    )
    blocks = tuple(_block(weights, config, layer) for layer in range(config.depth))
    return ir.Model(config.image, embedding, blocks, _classifier(weights, config))


def _stem(weights: Weights, config: DynamicVitConfig) -> tuple[ir.Convolution, ...]:
    channels, stem = config.channels, []
    for i, (out, kernel) in enumerate(config.stem, 1):
        norm = _batch_norm(weights, f"patch_embed.bn{i}", out, config.batch_norm_eps)
        weight = weights.take(f"patch_embed.conv{i}.weight", (out, channels, kernel, kernel))
        stem.append(ir.Convolution(weight, None, _STEM_STRIDE if i == 1 else 1, norm))
        channels = out
    return tuple(stem)


def _batch_norm(weights: Weights, name: str, channels: int, eps: float) -> ir.BatchNorm:
    weights.skip(f"{name}.num_batches_tracked")
    return ir.BatchNorm(
        weight=weights.take(f"{name}.weight", (channels,)),
        bias=weights.take(f"{name}.bias", (channels,)),
        mean=weights.take(f"{name}.running_mean", (channels,)),
        variance=weights.take(f"{name}.running_var", (channels,)),
        eps=eps,
    )


def _block(weights: Weights, config: DynamicVitConfig, layer: int) -> ir.Block:
    name, dim, hidden = f"blocks.{layer}", config.dim, config.hidden[layer]
    attention = ir.Attention(
        norm=weights.norm(f"{name}.norm1", dim, config.eps),
        heads=split_heads(
            weights.linear(f"{name}.attn.qkv", 3 * dim, dim, bias=config.qkv_bias),
            weights.take(f"{name}.attn.proj.weight", (dim, dim)),
            config.heads,
        ),
        output_bias=weights.take(f"{name}.attn.proj.bias", (dim,)),
        scale=float((dim // config.heads) ** -0.5),
        residual_scale=1.0 / config.skip_lam,
    )
    mlp = ir.Mlp(
        norm=weights.norm(f"{name}.norm2", dim, config.eps),
        up=weights.linear(f"{name}.mlp.fc1", hidden, dim),
        down=weights.linear(f"{name}.mlp.fc2", dim, hidden),
        residual_scale=1.0 / config.skip_lam,
    )
    return ir.Block(name, attention, mlp, select=_select(weights, config, layer))


def _select(weights: Weights, config: DynamicVitConfig, layer: int) -> ir.SelectTokens | None:
    if layer not in config.pruning_loc:
        return None
    index = config.pruning_loc.index(layer)
    scorer = _scorer(weights, config, f"score_predictor.{index}")
    return None if config.stage(layer) is None else ir.SelectTokens(scorer, config.keep[index], prefix=1, drop=False)


def _scorer(weights: Weights, config: DynamicVitConfig, name: str) -> ir.TokenScorer:
    dim, half = config.dim, config.dim // 2
    into = weights.linear(f"{name}.in_conv.1", dim, dim)
    assert into.bias is not None
    return ir.TokenScorer(
        norm=weights.norm(f"{name}.in_conv.0", dim, config.predictor_eps),
        local=ir.Linear(into.weight[:half], into.bias[:half]),
        context=ir.Linear(into.weight[half:], into.bias[half:]),
        layers=(
            weights.linear(f"{name}.out_conv.0", half, dim),
            weights.linear(f"{name}.out_conv.2", dim // 4, half),
            weights.linear(f"{name}.out_conv.4", 2, dim // 4),
        ),
    )


def _classifier(weights: Weights, config: DynamicVitConfig) -> ir.Classifier:
    dim, classes = config.dim, config.classes
    auxiliary = None
    if config.auxiliary:
        linear = weights.linear("aux_head", classes, dim)
        assert linear.bias is not None
        # A positive share goes through the maximum, and a half is exact.
        share = np.float32(_AUXILIARY_SHARE)
        auxiliary = ir.Linear(linear.weight * share, linear.bias * share)
    norm = weights.norm("norm", dim, config.eps)
    return ir.Classifier(norm, (0,), (weights.linear("head", classes, dim),), auxiliary=auxiliary)


def without_selection(model: ir.Model) -> ir.Model:
    """`model` with every token kept throughout."""
    return replace(model, blocks=tuple(replace(block, select=None) for block in model.blocks))


def build_network(checkpoint: Checkpoint, config: DynamicVitConfig, variant: Variant) -> DynamicVisionTransformer:
    """The PyTorch network in eval mode, sharing memory with the checkpoint; without predictors where `variant` is dense."""
    state = {key: t.to(torch.float32) if t.is_floating_point() else t for key, t in checkpoint.state.items()}
    if variant == "dense":
        config = replace(config, pruning_loc=(), keep=())
        state = {key: tensor for key, tensor in state.items() if not key.startswith("score_predictor.")}
    with torch.device("meta"):
        network = DynamicVisionTransformer(config)
    network.load_state_dict(state, assign=True)
    return network.eval()
