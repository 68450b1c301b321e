"""The front end for plain vision transformers: a network of timm's, read module by module, in IR.

Names say nothing, submodules and shapes say everything: so networks that somebody pruned physically come in as they are.
What timm computes besides (grouped-query attention, talking heads, relative positions, windows, parallel blocks, ...) is
refused with its name, as is whatever stands in the place of a known module.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from slimc import ir
from slimc.errors import CheckpointError
from slimc.models.timm_blocks import channel_order, read_block, read_mlp, required_norm
from slimc.models.timm_layers import (
    array,
    check_idle,
    check_parts,
    expect,
    is_identity,
    kind_of,
    linear,
    maybe,
    norm,
)

NETWORKS = ("VisionTransformer", "VisionTransformerDistilled", "Eva")
_PARTS = (
    "patch_embed", "pos_drop", "patch_drop", "norm_pre", "blocks", "norm", "attn_pool", "fc_norm", "head_drop", "head",
    "head_dist", "rope",
)  # fmt: skip
_TOKENS = ("cls_token", "dist_token", "reg_token", "pos_embed")


def read_network(module: Any, name: str) -> ir.Model:  # noqa: ANN401
    """A network of timm's in IR; its arrays share memory and type with the module.

    Args:
        module: a VisionTransformer, VisionTransformerDistilled or Eva.
        name: of the network, for messages.

    Raises:
        CheckpointError: part of it computes what slimc does not know; the message names it.
    """
    kind = expect(module, name, NETWORKS)
    check_parts(module, name, _PARTS, _TOKENS)
    check_idle(module, name, ("pos_drop", "patch_drop", "head_drop"))
    embedding, image = _embedding(module, kind)
    prefix = len(embedding.prefix)
    weight = embedding.patch.weight
    grid = (image[0] // weight.shape[2], image[1] // weight.shape[3])
    rotations = _rotations(module, prefix, grid)
    kind_of(module.blocks, "blocks")
    blocks = tuple(
        read_block(block, f"blocks.{i}", None if rotations is None else rotations[i % len(rotations)])
        for i, block in enumerate(module.blocks)
    )
    rows = np.arange(prefix + grid[0] * grid[1])
    classifier = _distilled(module) if kind == "VisionTransformerDistilled" else _classifier(module, kind, prefix, rows)
    model = ir.Model(image, embedding, blocks, classifier)
    return ir.choose_outputs(model, default_outputs(classifier))


def default_outputs(classifier: ir.Classifier) -> tuple[str, ...]:
    """What a network gives that nobody asked for something else: logits, else features, else tokens."""
    pooled = bool(classifier.rows) or classifier.pool is not None
    return ("logits",) if classifier.heads else ("features",) if pooled else ("tokens",)


def _embedding(module: Any, kind: str) -> tuple[ir.Embedding, tuple[int, int]]:  # noqa: ANN401
    """The embedding, and height and width of the image."""
    patch = module.patch_embed
    expect(patch, "patch_embed", ("PatchEmbed",))
    check_parts(patch, "patch_embed", ("proj", "norm"))
    proj = _patch_projection(patch.proj)
    if patch.img_size is None:
        raise CheckpointError("patch_embed.img_size: is none; give --img-size")
    if patch.dynamic_img_pad:
        raise CheckpointError("patch_embed.dynamic_img_pad: pads images, which slimc does not do; expected False")
    names = {"VisionTransformerDistilled": ("cls_token", "dist_token")}.get(kind, ("cls_token", "reg_token"))
    tokens = [array(getattr(module, token), token)[0] for token in names if getattr(module, token, None) is not None]
    prefix = np.concatenate([np.zeros((0, len(proj.weight)), proj.weight.dtype), *tokens])
    position = None if module.pos_embed is None else array(module.pos_embed, "pos_embed")[0]
    patches = patch.grid_size[0] * patch.grid_size[1]
    with_prefix = position is not None and not module.no_embed_class and len(prefix) > 0
    expected = patches + (len(prefix) if with_prefix else 0)
    if position is not None and len(position) != expected:
        raise CheckpointError(f"pos_embed: has {len(position)} rows, expected {expected}")
    embedding = ir.Embedding(
        patch=proj,
        prefix=prefix,
        prefix_position=position[: len(prefix)] if with_prefix and position is not None else None,
        patch_position=position[expected - patches :] if position is not None else None,
        patch_norm=norm(patch.norm, "patch_embed.norm"),
        norm=norm(module.norm_pre, "norm_pre"),
    )
    return embedding, (int(patch.img_size[0]), int(patch.img_size[1]))


def _patch_projection(proj: Any) -> ir.PatchEmbed:  # noqa: ANN401
    expect(proj, "patch_embed.proj", ("Conv2d",))
    check_parts(proj, "patch_embed.proj", (), ("weight", "bias"))
    plain = (
        proj.stride == proj.kernel_size and proj.groups == 1 and proj.dilation == (1, 1) and proj.padding in ((0, 0), 0)
    )
    if not plain:
        raise CheckpointError(
            f"patch_embed.proj: {proj} does not cut an image into patches; expected stride = kernel size"
        )
    return ir.PatchEmbed(array(proj.weight, "patch_embed.proj.weight"), maybe(proj.bias, "patch_embed.proj.bias"))


def _rotations(
    module: Any,  # noqa: ANN401
    prefix: int,
    grid: tuple[int, int],
) -> tuple[tuple[ir.Rotation, ...], ...] | None:
    """Rotations of the heads of every block: one block, one head for all where they are alike; none where there are none."""
    rope = getattr(module, "rope", None)
    if rope is None:
        return None
    kind_of(rope, "rope")
    with torch.no_grad():
        table = (
            rope.get_embed()
            if not module.dynamic_img_size and hasattr(rope, "feat_shape")
            else rope.get_embed(shape=grid)
        )
    if not isinstance(table, torch.Tensor) or table.ndim not in (2, 4) or table.shape[-2] != grid[0] * grid[1]:
        raise CheckpointError(f"rope: {type(rope).__name__} gives no table of the {grid[0] * grid[1]} patches")
    like = module.patch_embed.proj.weight.dtype
    sin, cos = np.split(array(table.to(like), "rope"), 2, axis=-1)
    halves = {bool(getattr(block.attn, "rotate_half", False)) for block in module.blocks}
    if len(halves) > 1:
        raise CheckpointError("rope: some blocks turn halves of a head, others pairs; expected one way")
    order = channel_order(module.blocks[0].attn, sin.shape[-1])
    if order is not None:
        sin, cos = sin[..., order], cos[..., order]
    per_head = sin.ndim == 4
    blocks = []
    for layer in range(len(sin) if per_head else 1):
        heads = zip(sin[layer], cos[layer], strict=True) if per_head else [(sin, cos)]
        blocks.append(tuple(_rotation(s, c, prefix) for s, c in heads))
    return tuple(blocks)


def _rotation(sin: ir.FloatArray, cos: ir.FloatArray, prefix: int) -> ir.Rotation:
    """The rotation of one head, from the tables of both halves of its channels; prefix rows are not turned."""
    half = sin.shape[1] // 2
    if not (np.array_equal(sin[:, :half], sin[:, half:]) and np.array_equal(cos[:, :half], cos[:, half:])):
        raise CheckpointError("rope: the two channels of a pair are turned by different angles; expected the same")
    still = np.zeros((prefix, half), sin.dtype)
    return ir.Rotation(np.concatenate([still + 1, cos[:, :half]]), np.concatenate([still, sin[:, :half]]))


def _head(module: nn.Module, path: str) -> tuple[ir.Linear, ...]:
    """The classifier's only linear layer; none where there is no classifier."""
    return () if is_identity(module) else (linear(module, path),)


def _distilled(module: Any) -> ir.Classifier:  # noqa: ANN401
    """DeiT's two heads, on the class token and the distillation token, whose logits are averaged."""
    heads = (*_head(module.head, "head"), *_head(module.head_dist, "head_dist"))
    if len(heads) == 1:
        raise CheckpointError("head_dist: one of the two heads is an identity; expected both or none")
    return ir.Classifier(norm(module.norm, "norm"), (0, 1), heads, scale=0.5)


def _classifier(module: Any, kind: str, prefix: int, rows: ir.IndexArray) -> ir.Classifier:  # noqa: ANN401
    heads, last = _head(module.head, "head"), norm(module.norm, "norm")
    behind = norm(module.fc_norm, "fc_norm")
    everything = kind == "VisionTransformer" and bool(getattr(module, "pool_include_prefix", False))
    name = module.global_pool
    if module.attn_pool is not None:
        skipped = 0 if everything or kind == "Eva" else prefix
        pool: ir.Pool | ir.LatentPool = _latent_pool(module.attn_pool, rows[skipped:])
        return ir.Classifier(last, (), heads, pool=pool, pooled_norm=behind)
    if name == "token":
        return ir.Classifier(last, (0,), heads, pooled_norm=behind)
    if name in ("avg", "max", "avgmax"):
        return ir.Classifier(
            last, (), heads, pool=ir.Pool(name, rows if everything else rows[prefix:]), pooled_norm=behind
        )
    if name or heads or behind is not None:
        raise CheckpointError(
            f"global_pool: {name!r} gives logits of every token, or is unknown; expected token, avg, max, avgmax or map, or "
            "no classifier (--num-classes 0)"
        )
    return ir.Classifier(last, (), ())


def _latent_pool(pool: Any, rows: ir.IndexArray) -> ir.LatentPool:  # noqa: ANN401
    path = "attn_pool"
    expect(pool, path, ("AttentionPoolLatent",))
    check_parts(pool, path, ("q", "kv", "q_norm", "k_norm", "proj", "proj_drop", "norm", "mlp"), ("latent",))
    check_idle(pool, path, ("proj_drop", "q_norm", "k_norm"))
    if not is_identity(pool.q_norm) or not is_identity(pool.k_norm):
        raise CheckpointError(
            f"{path}.q_norm: normalises queries and keys, which slimc does not know there; expected none"
        )
    if pool.latent_len != 1 or pool.pool not in ("token", "avg"):
        raise CheckpointError(f"{path}: {pool.latent_len} latent queries, pooled by {pool.pool!r}; expected one")
    latent = array(pool.latent, f"{path}.latent")[0, 0]
    if not is_identity(pool.q):
        asked = linear(pool.q, f"{path}.q")
        latent = latent @ asked.weight.T + (0 if asked.bias is None else asked.bias)
    joined = linear(pool.kv, f"{path}.kv")
    key, value = (ir.Linear(w, b) for w, b in zip(np.split(joined.weight, 2), _halves(joined.bias), strict=True))
    if is_identity(pool.proj):
        proj = ir.Linear(np.eye(len(value.weight), dtype=value.weight.dtype))
    else:
        proj = linear(pool.proj, f"{path}.proj")
    mlp = None
    if pool.mlp is not None:
        mlp = read_mlp(pool.mlp, f"{path}.mlp", required_norm(pool.norm, f"{path}.norm"))
    elif not is_identity(pool.norm):
        raise CheckpointError(f"{path}.norm: has no FFN behind it; expected none")
    count, width = int(pool.num_heads), len(key.weight) // int(pool.num_heads)
    heads = []
    for i in range(count):
        own = slice(i * width, (i + 1) * width)
        keys, values = (ir.keep_outputs(each, own) for each in (key, value))
        heads.append(ir.LatentHead(latent[own], keys, values, proj.weight[:, own]))
    return ir.LatentPool(tuple(heads), proj.bias, float(width**-0.5), rows, mlp)


def _halves(bias: ir.FloatArray | None) -> list[ir.FloatArray | None]:
    return [None, None] if bias is None else list(np.split(bias, 2))
