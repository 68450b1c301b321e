"""The ViT-Slim front end: a checkpoint to its geometry, masks, IR and PyTorch network.

Geometry follows from the shapes. What they cannot tell comes from the training arguments in the file or from options:
the grid's aspect (``--img-size``), the softmax scale (``--qk-scale``), the budgets of a search-stage file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slimc import ir
from slimc.errors import BudgetError, CheckpointError, OptionError
from slimc.files.checkpoint import Checkpoint
from slimc.models.geometry import image_size
from slimc.models.options import VitSlimOptions
from slimc.models.preprocessing import input_size, read_preprocessing
from slimc.models.system import Network, System, Variant
from slimc.models.vit_slim_masks import Budgets, Masks, Zetas, binary_masks, check_budget, full_masks
from slimc.models.vit_slim_network import MaskedVisionTransformer, VitSlimConfig
from slimc.models.weights import Weights, split_heads


def load(checkpoint: Checkpoint, options: VitSlimOptions, system: System) -> Network:
    """Read a ViT-Slim checkpoint.

    Raises:
        CheckpointError: the state dict is not of a ViT-Slim network.
        BudgetError: the budgets are missing or cannot be used.
        OptionError: an option contradicts the shapes.
    """
    weights = Weights(checkpoint.path, checkpoint.state)
    config = read_config(weights, checkpoint.path, checkpoint.args, options)
    zetas = [_zetas(weights, config, layer) for layer in range(config.depth)]
    budgets = read_budgets(checkpoint.path, checkpoint.args, options)
    masks, thresholds = binary_masks(zetas, budgets, config.heads, config.head_dim)
    masked = to_ir(weights, config, masks)
    weights.finish()
    preprocessing, warnings = read_preprocessing(checkpoint, config.image, options, channels=config.channels)
    return Network(
        system=system,
        path=checkpoint.path,
        sha256=checkpoint.sha256,
        masked=masked,
        dense=without_masks(masked),
        preprocessing=preprocessing,
        pytorch=lambda variant: build_network(checkpoint, config, _masks_of(variant, masks, zetas, config)),
        settings={"budgets": asdict(budgets)},
        details={"thresholds": asdict(thresholds)},
        warnings=(*overridden(checkpoint.path, checkpoint.args, budgets), *warnings),
    )


def read_config(weights: Weights, path: Path, args: Mapping[str, Any], options: VitSlimOptions) -> VitSlimConfig:
    """Geometry from the shapes, the training arguments and the options."""
    dim = weights.shape("cls_token", axes=3)[-1]
    depth = weights.count("blocks")
    patch = weights.shape("patch_embed.proj.weight")[2:]
    if depth == 0 or len(patch) != 2:
        raise CheckpointError(f"{path}: the state dict has no blocks.0 or no patch_embed.proj.weight of four axes")
    distilled = "dist_token" in weights
    patches = weights.shape("pos_embed", axes=3)[1] - (2 if distilled else 1)
    zeta = _zeta_shape(weights, path, "blocks.0.attn.zeta")
    heads = _heads(zeta, dim, path, args, options)
    return VitSlimConfig(
        image=image_size(patches, (patch[0], patch[1]), input_size(args), options.img_size),
        patch=(patch[0], patch[1]),
        dim=dim,
        depth=depth,
        heads=heads,
        zeta=zeta,
        hidden=tuple(weights.shape(f"blocks.{layer}.mlp.fc1.weight", axes=2)[0] for layer in range(depth)),
        classes=weights.shape("head.weight", axes=2)[0],
        scale=_scale(options.qk_scale, dim // heads),
        qkv_bias="blocks.0.attn.qkv.bias" in weights,
        distilled=distilled,
        channels=weights.image_channels("patch_embed.proj.weight"),
        representation=weights.shape("pre_logits.fc.weight", axes=2)[0] if "pre_logits.fc.weight" in weights else None,
    )


def _zeta_shape(weights: Weights, path: Path, key: str) -> tuple[int, int]:
    shape = weights.shape(key)
    if len(shape) != 5 or (shape[0], shape[1], shape[3]) != (1, 1, 1) or 0 in shape:
        expected = "[1, 1, H, 1, d], [1, 1, H, 1, 1] or [1, 1, 1, 1, d]"
        raise CheckpointError(f"{path}: {key} has the shape {list(shape)}, expected {expected}")
    return shape[2], shape[4]


def _heads(zeta: tuple[int, int], dim: int, path: Path, args: Mapping[str, Any], options: VitSlimOptions) -> int:
    """Number of heads: zeta's first axis, or for uniform search dim divided by its second."""
    rows, columns = zeta
    if zeta == (1, 1) and dim > 1:
        # One number: a head search over one head, or a uniform search over heads of one channel.
        heads = options.num_heads or (dim if args.get("uniform_search") is True else 1)
    elif rows * columns == dim or columns == 1:
        heads = rows
    else:
        heads = dim // columns if rows == 1 and dim % columns == 0 else 0
    if heads == 0 or dim % heads:
        raise CheckpointError(
            f"{path}: blocks.0.attn.zeta has {rows} x {columns} entries, which do not fit a width of {dim}"
        )
    if options.num_heads not in (None, heads):
        raise OptionError(
            f"--num-heads: {options.num_heads} contradicts the checkpoint, whose zetas have {heads} heads"
        )
    return heads


def _scale(qk_scale: float | None, head_dim: int) -> float:
    if qk_scale is None:
        return float(head_dim**-0.5)
    if not math.isfinite(qk_scale) or qk_scale <= 0:
        raise OptionError(f"--qk-scale: {qk_scale} is not a scale; expected a positive number")
    return qk_scale


def read_budgets(path: Path, args: Mapping[str, Any], options: VitSlimOptions) -> Budgets:
    """Budgets from the options, else from the training arguments.

    Raises:
        BudgetError: one is in neither, or is not in (0, 1]; or `budget` is given besides one for each kind.
    """
    if options.budget is not None and None not in (options.budget_attn, options.budget_mlp, options.budget_patch):
        raise BudgetError("--budget: --budget-attn, --budget-mlp and --budget-patch leave nothing for it to say")
    values: dict[str, float] = {}
    for kind in ("attn", "mlp", "patch"):
        given, stored = getattr(options, f"budget_{kind}"), args.get(f"budget_{kind}")
        option = f"--budget-{kind}" if given is not None else "--budget"
        given = options.budget if given is None else given
        if given is None and stored is None:
            raise BudgetError(
                f"{path}: a search-stage checkpoint, without budgets; give --budget B, "
                "or --budget-attn, --budget-mlp and --budget-patch"
            )
        source = option if given is not None else f"{path}: args.budget_{kind}"
        values[kind] = check_budget(stored if given is None else given, source)
    return Budgets(**values)


def overridden(path: Path, args: Mapping[str, Any], budgets: Budgets) -> tuple[str, ...]:
    """What to say where a retrained checkpoint is compiled for other budgets than its own."""
    own = {kind: args.get(f"budget_{kind}") for kind in ("attn", "mlp", "patch")}
    others = {kind: asked for kind, asked in asdict(budgets).items() if own[kind] not in (None, asked)}
    if not others:
        return ()
    changes = ", ".join(f"{kind} {asked:g} instead of {own[kind]:g}" for kind, asked in others.items())
    return (
        f"{path}: was retrained for budgets of its own and is compiled for others ({changes}): its weights have adapted "
        "to other masks; agreement is with the network under the new masks, and says nothing about labels",
    )


def _zetas(weights: Weights, config: VitSlimConfig, layer: int) -> Zetas:
    rows, columns = config.zeta
    hidden = config.hidden[layer]
    return Zetas(
        attn=weights.take(f"blocks.{layer}.attn.zeta", (1, 1, rows, 1, columns)).reshape(rows, columns),
        mlp=weights.take(f"blocks.{layer}.mlp.zeta", (1, 1, hidden)).reshape(hidden),
        patch=weights.take(f"blocks.{layer}.attn.patch_zeta", (1, config.tokens, 1)).reshape(config.tokens),
    )


def to_ir(weights: Weights, config: VitSlimConfig, masks: Sequence[Masks]) -> ir.Model:
    """The masked network in IR; its arrays share memory with the checkpoint."""
    dim, prefix = config.dim, config.prefix
    position = weights.take("pos_embed", (1, config.tokens, dim))[0]
    tokens = [weights.take("cls_token", (1, 1, dim))[0]]
    if config.distilled:
        tokens.append(weights.take("dist_token", (1, 1, dim))[0])
    embedding = ir.Embedding(
        patch=ir.PatchEmbed(
            weight=weights.take("patch_embed.proj.weight", (dim, config.channels, *config.patch)),
            bias=weights.take("patch_embed.proj.bias", (dim,)),
        ),
        prefix=np.concatenate(tokens),
        prefix_position=position[:prefix],
        patch_position=position[prefix:],
    )
    blocks = tuple(_block(weights, config, layer, mask) for layer, mask in enumerate(masks))
    return ir.Model(config.image, embedding, blocks, _classifier(weights, config))


def _block(weights: Weights, config: VitSlimConfig, layer: int, masks: Masks) -> ir.Block:
    name, dim, hidden = f"blocks.{layer}", config.dim, config.hidden[layer]
    attention = ir.Attention(
        norm=weights.norm(f"{name}.norm1", dim, config.eps),
        heads=split_heads(
            weights.linear(f"{name}.attn.qkv", 3 * dim, dim, bias=config.qkv_bias),
            weights.take(f"{name}.attn.proj.weight", (dim, dim)),
            config.heads,
            masks.attn,
        ),
        output_bias=weights.take(f"{name}.attn.proj.bias", (dim,)),
        scale=config.scale,
        token_mask=masks.patch,
    )
    mlp = ir.Mlp(
        norm=weights.norm(f"{name}.norm2", dim, config.eps),
        up=weights.linear(f"{name}.mlp.fc1", hidden, dim),
        down=weights.linear(f"{name}.mlp.fc2", dim, hidden),
        mask=masks.mlp,
        token_mask=masks.patch,
    )
    return ir.Block(name, attention, mlp)


def _classifier(weights: Weights, config: VitSlimConfig) -> ir.Classifier:
    dim, classes = config.dim, config.classes
    norm = weights.norm("norm", dim, config.eps)
    features = config.representation or dim
    pre_logits = weights.linear("pre_logits.fc", features, dim) if config.representation else None
    head = weights.linear("head", classes, features)
    if not config.distilled:
        return ir.Classifier(norm, (0,), (head,), pre_logits)
    return ir.Classifier(norm, (0, 1), (head, weights.linear("head_dist", classes, dim)), pre_logits, scale=0.5)


def without_masks(model: ir.Model) -> ir.Model:
    """`model` with every mask at one."""
    from dataclasses import replace

    blocks = []
    for block in model.blocks:
        assert isinstance(block.attention, ir.Attention)
        assert isinstance(block.mlp, ir.Mlp)
        heads = tuple(replace(head, mask=None, value_mask=None) for head in block.attention.heads)
        attention = replace(block.attention, heads=heads, token_mask=None)
        blocks.append(replace(block, attention=attention, mlp=replace(block.mlp, mask=None, token_mask=None)))
    return replace(model, blocks=tuple(blocks))


def _masks_of(variant: Variant, masks: list[Masks], zetas: list[Zetas], config: VitSlimConfig) -> list[Masks]:
    return full_masks(zetas, config.heads, config.head_dim) if variant == "dense" else masks


def build_network(
    checkpoint: Checkpoint, config: VitSlimConfig, masks: Sequence[Masks] | None
) -> MaskedVisionTransformer:
    """The PyTorch network in eval mode, sharing memory with the checkpoint; soft masks where `masks` is none."""
    with torch.device("meta"):
        network = MaskedVisionTransformer(config)
    state = {key: tensor.to(torch.float32) for key, tensor in checkpoint.state.items()}
    network.load_state_dict(state, assign=True)
    if masks is not None:
        network.compress(masks)
    return network.eval()
