"""Tiny networks of transformers' own, with every parameter random, and what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

hf: Any = pytest.importorskip("transformers")

DIM, PATCH, SIDE = 24, 4, 12
_SHAPE = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 3}
_IMAGE = {"image_size": SIDE, "patch_size": PATCH}
_PLAIN = {**_SHAPE, **_IMAGE, "intermediate_size": 40}
_TEXT = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 11,
    "max_position_embeddings": 5, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_BOTH = {"text_config": _TEXT, "vision_config": _PLAIN}
_NAFLEX = {**_SHAPE, "intermediate_size": 40, "patch_size": PATCH, "num_patches": (SIDE // PATCH) ** 2}
_DECODER = {
    "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 8,
}  # fmt: skip

NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTModel", "ViTConfig", {**_PLAIN, "num_channels": 1, "hidden_act": "gelu_new"}),
    "vit-classifier": ("ViTForImageClassification", "ViTConfig", {**_PLAIN, "num_labels": 5}),
    "vit-no-bias": ("ViTForImageClassification", "ViTConfig", {**_PLAIN, "qkv_bias": False, "layer_norm_eps": 1e-2}),
    "vit-oblong": ("ViTModel", "ViTConfig", {**_PLAIN, "image_size": [12, 16], "patch_size": [4, 2]}),
    "vit-rounding": (
        "ViTModel",
        "ViTConfig",
        {**_PLAIN, "hidden_size": 44, "num_attention_heads": 4, "intermediate_size": 49},
    ),
    "vit-masked": ("ViTForMaskedImageModeling", "ViTConfig", {**_PLAIN, "encoder_stride": PATCH}),
    "deit": ("DeiTModel", "DeiTConfig", _PLAIN),
    "deit-classifier": ("DeiTForImageClassification", "DeiTConfig", {**_PLAIN, "num_labels": 5}),
    "deit-teacher": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", {**_PLAIN, "num_labels": 5}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {**_SHAPE, **_IMAGE, "mlp_ratio": 2}),
    "dinov2-swiglu": (
        "Dinov2Model",
        "Dinov2Config",
        {**_SHAPE, **_IMAGE, "hidden_size": 20, "num_attention_heads": 5, "mlp_ratio": 2, "use_swiglu_ffn": True},
    ),
    "dinov2-no-mask": ("Dinov2Model", "Dinov2Config", {**_SHAPE, **_IMAGE, "mlp_ratio": 2, "use_mask_token": False}),
    "dinov2-registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        {**_SHAPE, **_IMAGE, "mlp_ratio": 2, "num_register_tokens": 3},
    ),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**_PLAIN, "num_register_tokens": 3, "rope_theta": 50.0}),
    "dinov3-gated": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        {**_PLAIN, "use_gated_mlp": True, "hidden_act": "silu", "mlp_bias": False, "proj_bias": False},
    ),
    "dinov3-gelu-gated": ("DINOv3ViTModel", "DINOv3ViTConfig", {**_PLAIN, "use_gated_mlp": True}),
    "dinov3-key-bias": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        {**_PLAIN, "key_bias": True, "value_bias": False, "hidden_act": "gelu_pytorch_tanh"},
    ),
    "dinov3-no-bias": ("DINOv3ViTModel", "DINOv3ViTConfig", {**_PLAIN, "query_bias": False, "value_bias": False}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", _PLAIN),
    "siglip-tokens": ("SiglipVisionModel", "SiglipVisionConfig", {**_PLAIN, "vision_use_head": False}),
    "siglip-remainder": ("SiglipVisionModel", "SiglipVisionConfig", {**_PLAIN, "image_size": SIDE + 3}),
    "siglip-both": ("SiglipModel", "SiglipConfig", _BOTH),
    "siglip-classifier": ("SiglipForImageClassification", "SiglipConfig", {**_BOTH, "num_labels": 5}),
    "siglip2": ("Siglip2VisionModel", "Siglip2VisionConfig", _NAFLEX),
    "siglip2-both": ("Siglip2Model", "Siglip2Config", {"text_config": _TEXT, "vision_config": _NAFLEX}),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", _PLAIN),
    "clip-projection": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {**_PLAIN, "projection_dim": 7}),
    "clip-both": ("CLIPModel", "CLIPConfig", {**_BOTH, "projection_dim": 7}),
    "clip-classifier": ("CLIPForImageClassification", "CLIPConfig", {**_BOTH, "num_labels": 5}),
    "mae": ("ViTMAEModel", "ViTMAEConfig", {**_PLAIN, "mask_ratio": 0.0}),
    "mae-pretraining": ("ViTMAEForPreTraining", "ViTMAEConfig", {**_PLAIN, "mask_ratio": 0.0, **_DECODER}),
}
CONCATENATED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", {**NETWORKS["dinov2"][2], "num_labels": 5}),
    "dinov2-registers": (
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        {**NETWORKS["dinov2-registers"][2], "num_labels": 5},
    ),
}


def build(network: tuple[str, str, dict[str, Any]]) -> Any:
    """A network by the names of its class and configuration, in eval mode."""
    name, config, values = network
    torch.manual_seed(0)
    model = getattr(hf, name)(getattr(hf, config)(**values)).eval()
    for key, parameter in model.named_parameters():
        # Multiples of 1/256: what transformers and timm add up in another order is exact in float32 then.
        noise = torch.randint(-96, 97, parameter.shape) / 256
        one = "norm" in key and key.endswith("weight")
        parameter.data.copy_(1 + noise if one else noise)
    return model


def save(model: Any, folder: Path, **options: Any) -> Path:
    """What transformers leaves of `model` in `folder`."""
    model.save_pretrained(folder, **options)
    return folder


def pictures(model: Any, count: int = 2, image: tuple[int, int] | None = None) -> Tensor:
    """Random inputs of `model` in double precision."""
    config = getattr(model.config, "vision_config", model.config)
    side = getattr(config, "image_size", SIDE)
    size = image or (tuple(side) if isinstance(side, (list, tuple)) else (side, side))
    torch.manual_seed(1)
    return torch.randn(count, config.num_channels, *size, dtype=torch.float64)


def run(model: Any, images: Tensor) -> dict[str, Tensor]:
    """What `model` makes of `images` in double precision: tokens after its last norm, pooled features, logits.

    Only those that it makes are there. CLIP has no norm after the last block but for the class token: it is applied here.
    """
    model = model.double()
    kind = model.config.model_type
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        if kind.startswith("vit_mae"):
            order = torch.arange((SIDE // PATCH) ** 2).expand(len(images), -1)
            return {"tokens": getattr(model, "vit", model)(images, noise=order).last_hidden_state}
        tower = next(
            (
                getattr(model, name)
                for name in ("vision_model", "vit", "deit", "dinov2", "dinov2_with_registers")
                if hasattr(model, name)
            ),
            model,
        )
        inputs = patches(images) if kind.startswith("siglip2") else {"pixel_values": images}
        output = tower(**inputs)
        found["tokens"] = output.last_hidden_state
        if kind.startswith("clip") and not hasattr(model, "classifier"):
            found["tokens"] = tower.post_layernorm(output.last_hidden_state)
        if output.pooler_output is not None and not hasattr(tower, "pooler"):
            found["pooled"] = output.pooler_output
        if hasattr(model, "visual_projection"):
            found["logits"] = model.visual_projection(output.pooler_output)
        elif hasattr(model, "classifier") or hasattr(model, "cls_classifier"):
            found.pop("pooled", None)
            found["logits"] = model(images).logits
    return found


def patches(images: Tensor) -> dict[str, Tensor]:
    """The inputs of a network that takes any grid: a row a patch, and the grid."""
    from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

    rows = torch.stack([convert_image_to_patches(image, PATCH) for image in images])
    grid = torch.tensor([[images.shape[2] // PATCH, images.shape[3] // PATCH]] * len(images))
    return {"pixel_values": rows, "spatial_shapes": grid, "pixel_attention_mask": torch.ones(rows.shape[:2])}
