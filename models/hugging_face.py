"""Vision transformers in Hugging Face's form as timm's modules, which compute the same from the same weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slimc.errors import CheckpointError, MissingError, OptionError
from slimc.models.folder_files import CONFIG, FolderModule, FolderWeights, NotInitialised, fill, read_weights
from slimc.models.hugging_face_config import WITH_TEXT, Fields, read_fields
from slimc.models.hugging_face_images import read_images
from slimc.models.hugging_face_names import Source, Tower, assemble

_PREFIXES = {
    "vit": "vit.",
    "vit_mae": "vit.",
    "deit": "deit.",
    "dinov2": "dinov2.",
    "dinov2_with_registers": "dinov2_with_registers.",
}
_VISION = "vision_model."
# What only training uses: a token for masked patches, and numbers 0, 1, 2, ... that older releases stored.
_TRAINING = ("embeddings.mask_token", "embeddings.position_ids")
_TEXT = ("text_model.", "text_projection.", "logit_scale", "logit_bias")


@dataclass(frozen=True, eq=False)
class _Head:
    """What follows the tower.

    Attributes:
        pool: timm's name of it.
        classes: rows of the linear layers, 0 where there are none.
        layers: timm's state dict of them.
        concatenated: weight and bias of a layer that timm has no module for.
    """

    pool: str = "token"
    classes: int = 0
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    concatenated: tuple[Tensor, Tensor | None] | None = None


def read_hugging_face(
    folder: Path,
    config: Mapping[str, Any],
    *,
    image: tuple[int, int] | None = None,
    num_classes: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> FolderModule:
    """The network in `folder`, whose config.json is `config`; see `slimc.models.folders.read_folder`."""
    kind, fields = read_fields(folder / CONFIG, config)
    tower = _tower(kind, fields, image)
    weights = read_weights(folder)
    source = Source(weights.path, weights.state, (_PREFIXES.get(kind, _VISION),))
    classifies = "head.weight" in source
    head = _wanted(_head(kind, config, fields, source, weights), num_classes)
    tower = replace(tower, map_pool=head.pool == "map", final_norm=not (classifies and _is(kind, "clip")))
    left_out = _leave_out(kind, source, classifies)
    state = assemble(source, tower)
    source.finish()
    if "dist_token" in state and "head_dist.weight" not in head.layers:
        state["reg_token"] = state.pop("dist_token")
    module = _build(tower, head, model_kwargs or {})
    fill(module, {**state, **head.layers}, weights.path)
    args, said = read_images(folder, kind, tower.image, tower.channels)
    notes = (
        *(f"{folder / CONFIG}: slimc knows nothing of {name}, and takes no account of it" for name in fields.unknown()),
        *(f"{weights.path}: left out {what}" for what in left_out),
        *_notes(weights, tower, head),
        *said,
    )
    return FolderModule(
        module.eval(), kind, args, weights.sha256, (*weights.warnings, *notes), concatenated_head=head.concatenated
    )


def _is(kind: str, family: str) -> bool:
    """Whether the model type `kind` is of `family`, such as siglip2_vision_model of siglip."""
    return kind.startswith(family)


def _tower(kind: str, fields: Fields, image: tuple[int, int] | None) -> Tower:
    """The shape of the vision tower, for images of the size `image` where it is given."""
    dim, patch = fields.count("hidden_size"), fields.size("patch_size")
    native = _native(kind, fields, patch)
    if image is not None and (min(image) < 1 or image[0] % patch[0] or image[1] % patch[1]):
        raise OptionError(
            f"the image size {image[0]}x{image[1]} is no multiple of the patches' {patch[0]}x{patch[1]} pixels; "
            "expected height and width that are"
        )
    plain = Tower(
        dim=dim,
        depth=fields.count("num_hidden_layers"),
        heads=fields.count("num_attention_heads"),
        hidden=_hidden(kind, fields, dim),
        image=native if image is None else image,
        patch=patch,
        native=(native[0] // patch[0], native[1] // patch[1]),
        channels=fields.count("num_channels"),
        eps=fields.number("layer_norm_eps"),
        activation=fields.activation(),
    )
    if _is(kind, "dinov3"):
        return _dinov3(plain, fields)
    if _is(kind, "siglip"):
        linear = _is(kind, "siglip2")
        return replace(plain, prefix=0, positions="patches", linear_patches=linear, bilinear=linear)
    if _is(kind, "clip"):
        return replace(plain, biases=plain.biases - {"patch"}, pre_norm=True)
    plain = plain if fields.flag("qkv_bias") else replace(plain, biases=plain.biases - {"q", "k", "v"})
    if not _is(kind, "dinov2"):
        return replace(plain, prefix=2 if kind == "deit" else 1)
    gated = fields.flag("use_swiglu_ffn")
    plain = replace(plain, scales=True, gated=gated, activation="silu" if gated else plain.activation)
    if kind == "dinov2":
        return plain
    registers = fields.count("num_register_tokens", least=0)
    return replace(plain, prefix=1 + registers, registers=registers, positions="class")


def _native(kind: str, fields: Fields, patch: tuple[int, int]) -> tuple[int, int]:
    """The size of images that the file's positions are for."""
    if _is(kind, "siglip2"):
        side = math.isqrt(fields.count("num_patches"))
        if side * side != fields.count("num_patches"):
            raise fields.wrong("num_patches", "a square number")
        return side * patch[0], side * patch[1]
    image = fields.size("image_size")
    rows, columns = image[0] // patch[0], image[1] // patch[1]
    if min(rows, columns) < 1:
        raise fields.wrong("image_size", f"at least the patches' {patch[0]}x{patch[1]} pixels")
    if _is(kind, "dinov2") and rows != columns:
        raise fields.wrong("image_size", "a square of patches: its own code resizes positions for any other")
    return image


def _hidden(kind: str, fields: Fields, dim: int) -> int:
    """The number of hidden units."""
    if not _is(kind, "dinov2"):
        return fields.count("intermediate_size")
    hidden = int(dim * fields.number("mlp_ratio"))
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if fields.flag("use_swiglu_ffn") else hidden


def _dinov3(plain: Tower, fields: Fields) -> Tower:
    if plain.dim // plain.heads % 4:
        raise fields.wrong(
            "num_attention_heads", "heads of a multiple of 4 channels, which rotate in pairs on two axes"
        )
    names = {"q": "query_bias", "k": "key_bias", "v": "value_bias", "proj": "proj_bias", "mlp": "mlp_bias"}
    registers = fields.count("num_register_tokens", least=0)
    return replace(
        plain,
        theta=fields.number("rope_theta"),
        prefix=1 + registers,
        registers=registers,
        positions="none",
        biases=frozenset({"patch", *(part for part, name in names.items() if fields.flag(name))}),
        gated=fields.flag("use_gated_mlp"),
        scales=True,
    )


def _head(kind: str, config: Mapping[str, Any], fields: Fields, source: Source, weights: FolderWeights) -> _Head:
    """The pool, and the linear layers that the file has for what it makes."""
    _check_head(config, source, weights)
    dim = fields.count("hidden_size")
    pool = "token"
    if _is(kind, "siglip"):
        pool = "map" if fields.flag("vision_use_head") else ""
    if "projection.weight" in source and _is(kind, "clip"):
        rows = Fields(weights.path.parent / CONFIG, "", config, {"projection_dim": 512}).count("projection_dim")
        return _Head(pool, rows, {"head.weight": source.take("projection.weight", rows, dim)})
    if "head.weight" not in source or _is(kind, "dinov3") or kind == "vit_mae":
        return _Head(pool)
    rows = source.shape("head.weight")[0]
    if _is(kind, "dinov2"):
        return _Head(concatenated=(source.take("head.weight", rows, 2 * dim), source.take("head.bias", rows)))
    # Classifiers of CLIP's and SigLIP's towers read the mean of the patches, past their own pools.
    pool = "avg" if _is(kind, "clip") or _is(kind, "siglip") else pool
    names = ("head", "head_dist") if kind == "deit" and "head_dist.weight" in source else ("head",)
    layers: dict[str, Tensor] = {}
    for name in names:
        layers |= {
            f"{name}.weight": source.take(f"{name}.weight", rows, dim),
            f"{name}.bias": source.take(f"{name}.bias", rows),
        }
    return _Head(pool, rows, layers)


def _check_head(config: Mapping[str, Any], source: Source, weights: FolderWeights) -> None:
    """Check that there is the head that the network's class says there is.

    Raises:
        CheckpointError: there is none.
    """
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    labels = config.get("id2label", True)
    wanted = "head.weight" if "ForImageClassification" in name and labels else None
    wanted = "projection.weight" if name.endswith("WithProjection") else wanted
    if wanted is not None and wanted not in source:
        shown = "visual_projection" if wanted == "projection.weight" else "classifier"
        raise CheckpointError(f"{weights.path}: has no {shown}.weight, which {name} has by {CONFIG}")


def _wanted(head: _Head, num_classes: int | None) -> _Head:
    """The head with `num_classes`: none of them for the features that it reads."""
    there = head.classes if head.concatenated is None else len(head.concatenated[0])
    if num_classes in (None, there):
        return head
    if num_classes != 0:
        have = f"has {there} classes" if there else "has no classifier"
        raise OptionError(f"{num_classes} classes: the network {have}; expected {there}, or 0 for features")
    return _Head(head.pool)


def _leave_out(kind: str, source: Source, classifies: bool) -> list[str]:
    """Skip what is known to be of no use here; says what of it a user should know."""
    source.skip(*_TRAINING)
    left: list[str] = []
    if kind in ("vit", "deit") and source.skip("pooler."):
        left.append("the pooler (linear and tanh); features are the class token's, which it reads")
    if kind in ("vit", "deit", "vit_mae") and (count := source.skip("decoder.")):
        left.append(f"{count} weights of the decoder that reconstructs masked patches")
    if kind in WITH_TEXT and (count := source.skip(*_TEXT)):
        left.append(f"{count} weights of the text tower and of its comparison with images")
    if classifies and _is(kind, "siglip") and (count := source.skip("head.")):
        left.append(f"{count} weights of the attention pool, which the classifier does not read")
    if classifies and _is(kind, "clip"):
        source.skip("post_layernorm.")
    return left


def _build(tower: Tower, head: _Head, extra: Mapping[str, Any]) -> nn.Module:
    """The module, whose weights are yet to be filled in.

    Raises:
        MissingError: timm is too old for it.
        OptionError: `extra`, arguments of timm's class, cannot be used.
    """
    with torch.random.fork_rng(devices=[]), NotInitialised():
        try:
            module = (_eva if tower.eva else _vision_transformer)(tower, head, extra)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            if extra:
                raise OptionError(f"arguments {', '.join(extra)}: timm refuses them: {reason}") from None
            raise MissingError(f"this timm cannot build the network ({reason}); pip install -U 'slimc[timm]'") from None
        # Eva has no argument for it, and pools of older releases do not take that of the blocks.
        layer = _activation(tower.activation)
        for mlp in (each for each in module.modules() if hasattr(each, "fc1") and hasattr(each, "act")):
            mlp.act = mlp.act if isinstance(mlp.act, layer) else layer()
        if head.layers and "head.bias" not in head.layers:
            module.head = nn.Linear(tower.dim, head.classes, bias=False)
    return module.float()


def _common(tower: Tower, head: _Head) -> dict[str, Any]:
    from timm.layers import LayerNorm

    return {
        "img_size": tower.image,
        "patch_size": tower.patch[0] if tower.patch[0] == tower.patch[1] else tower.patch,
        "in_chans": tower.channels,
        "num_classes": head.classes,
        "global_pool": head.pool,
        "embed_dim": tower.dim,
        "depth": tower.depth,
        "num_heads": tower.heads,
        "qkv_bias": bool(tower.biases & {"q", "k", "v"}),
        "init_values": 1.0 if tower.scales else None,
        "norm_layer": partial(LayerNorm, eps=tower.eps),
    }


def _vision_transformer(tower: Tower, head: _Head, extra: Mapping[str, Any]) -> nn.Module:
    from timm.layers import SwiGLUPacked
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    teacher = "head_dist.weight" in head.layers
    distillation = tower.prefix - tower.registers == 2
    arguments = {
        **_common(tower, head),
        "mlp_ratio": _ratio(tower.dim, 2 * tower.hidden if tower.gated else tower.hidden),
        "class_token": tower.prefix > tower.registers,
        "no_embed_class": tower.positions == "class",
        "reg_tokens": tower.registers + (distillation and not teacher),
        "pre_norm": tower.pre_norm,
        "fc_norm": False,
        "act_layer": _activation(tower.activation),
        **({} if tower.final_norm else {"final_norm": False}),
        **({"mlp_layer": SwiGLUPacked} if tower.gated else {}),
        **({} if teacher else {"weight_init": "skip"}),
        **extra,
    }
    module: nn.Module = (VisionTransformerDistilled if teacher else VisionTransformer)(**arguments)
    return module


def _eva(tower: Tower, head: _Head, extra: Mapping[str, Any]) -> nn.Module:
    from timm.models.eva import Eva

    arguments = {
        **_common(tower, head),
        "mlp_ratio": _ratio(tower.dim, tower.hidden),
        "swiglu_mlp": tower.gated,
        "num_reg_tokens": tower.registers,
        # Eva's own attention has no bias of the key.
        "attn_type": "rope" if "k" in tower.biases else "eva",
        "use_abs_pos_emb": False,
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "rope_temperature": tower.theta,
        "rope_rotate_half": True,
        "use_fc_norm": False,
        **extra,
    }
    module: nn.Module = Eva(**arguments)
    return module


def _activation(name: str) -> type[nn.Module]:
    from timm.layers import get_act_layer

    layer: type[nn.Module] = nn.GELU if name == "gelu" else get_act_layer(name)
    return layer


def _ratio(dim: int, hidden: int) -> float:
    """The ratio at which timm makes `hidden` units of `dim` channels; it rounds down."""
    return hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim


def _notes(weights: FolderWeights, tower: Tower, head: _Head) -> list[str]:
    """What to say of the module's positions and head."""
    notes = []
    if tower.grid != tower.native and tower.positions != "none" and not tower.bilinear:
        sizes = " to ".join("x".join(map(str, grid)) for grid in (tower.native, tower.grid))
        notes.append(
            f"{weights.path}: positions were resized from {sizes} patches as timm does, with antialiasing; transformers "
            "resizes them without"
        )
    if head.concatenated is not None:
        notes.append(
            f"{weights.path}: the classifier reads the class token beside the mean of the patches, which timm has no "
            "module for: the module ends with the class token"
        )
    return notes
