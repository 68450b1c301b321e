"""What Hugging Face's config.json says of a vision transformer: its fields, their defaults, and those that are refused.

A field that changes what is computed is honoured or refused by name. One that is not known is warned of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimc.errors import CheckpointError

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
"""timm's names of activations by Hugging Face's."""

_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_channels": 3, "image_size": 224}
_VIT = {
    **_BASE, "patch_size": 16, "intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True
}  # fmt: skip
_DINOV2 = {
    **_BASE, "patch_size": 14, "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True,
    "use_swiglu_ffn": False,
}  # fmt: skip
_DINOV3 = {
    **_BASE, "hidden_size": 384, "num_attention_heads": 6, "patch_size": 16, "intermediate_size": 1536,
    "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rope_theta": 100.0, "query_bias": True, "key_bias": False,
    "value_bias": True, "proj_bias": True, "mlp_bias": True, "use_gated_mlp": False, "num_register_tokens": 0,
}  # fmt: skip
_SIGLIP = {
    **_BASE, "patch_size": 16, "intermediate_size": 3072, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    "vision_use_head": True,
}  # fmt: skip
_CLIP = {
    **_BASE, "patch_size": 32, "intermediate_size": 3072, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "projection_dim": 512,
}  # fmt: skip
_SIGLIP2 = {**{name: value for name, value in _SIGLIP.items() if name != "image_size"}, "num_patches": 256}

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "vit": _VIT,
    "deit": _VIT,
    "vit_mae": _VIT,
    "dinov2": _DINOV2,
    "dinov2_with_registers": {**_DINOV2, "patch_size": 16, "num_register_tokens": 4},
    "dinov3_vit": _DINOV3,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _SIGLIP2,
    "siglip2_vision_model": _SIGLIP2,
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
}
"""The model types, with the fields of each that change what is computed: a file may leave out what is the default."""

WITH_TEXT = ("clip", "siglip", "siglip2")
"""Model types that have a text tower beside the vision tower."""

# What computes something else wherever it is there.
_REFUSED = ("auto_map", "pruned_heads", "quantization_config", "rope_scaling", "rope_parameters")
# Training, other outputs of the same network, and what every configuration has.
_INERT = """
    hidden_dropout_prob attention_probs_dropout_prob attention_dropout dropout drop_path_rate initializer_range
    initializer_factor layerscale_value encoder_stride use_mask_token pooler_output_size pooler_act mask_ratio
    norm_pix_loss decoder_num_attention_heads decoder_hidden_size decoder_num_hidden_layers decoder_intermediate_size
    pos_embed_shift pos_embed_jitter pos_embed_rescale apply_layernorm reshape_hidden_states out_features out_indices
    stage_names _out_features _out_indices projection_dim num_patches image_size text_config vision_config
    text_config_dict vision_config_dict logit_scale_init_value

    _attn_implementation_autoset _commit_hash _name_or_path architectures attn_implementation add_cross_attention
    bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing
    id2label is_decoder is_encoder_decoder label2id length_penalty max_length min_length model_type
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix problem_type remove_invalid_values repetition_penalty
    return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers_version
    typical_p use_bfloat16 use_cache
"""
_EMPTY: tuple[object, ...] = (None, False, "", [], {})


class Fields:
    """The fields of a vision tower's configuration, each checked when it is asked for."""

    def __init__(self, path: Path, place: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._path = path
        self._place = place
        self._values = values
        self._defaults = defaults

    def raw(self, name: str) -> Any:  # noqa: ANN401 - whatever the file has
        """The value of `name`; its default where the file has none."""
        value = self._values.get(name)
        return self._defaults.get(name) if value is None else value

    def wrong(self, name: str, expected: str) -> CheckpointError:
        """The error that `name` is not as `expected`."""
        value = repr(self.raw(name))
        value = value if len(value) <= 60 else f"{value[:57]}..."
        return CheckpointError(f"{self._path}: {self._place}{name} is {value}; expected {expected}")

    def count(self, name: str, least: int = 1) -> int:
        """A whole number."""
        value = self.raw(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(name, f"a whole number from {least}")
        return value

    def number(self, name: str) -> float:
        """A positive number."""
        value = self.raw(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.wrong(name, "a positive number")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.raw(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def size(self, name: str) -> tuple[int, int]:
        """Height and width."""
        value = self.raw(name)
        sides = value if isinstance(value, list) else [value, value]
        if len(sides) != 2 or not all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sides):
            raise self.wrong(name, "a whole number of pixels, or two: height and width")
        return sides[0], sides[1]

    def activation(self, name: str = "hidden_act") -> str:
        """The activation, by timm's name."""
        value = self.raw(name)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self.wrong(name, f"one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def refuse(self, heads: int, dim: int) -> None:
        """Refuse fields that would compute something else.

        Raises:
            CheckpointError: there is one.
        """
        if dim % heads:
            raise self.wrong("num_attention_heads", f"a divisor of hidden_size, {dim}")
        if self.raw("head_dim") not in (None, dim // heads):
            raise self.wrong("head_dim", f"{dim // heads}, which is hidden_size / num_attention_heads")
        for name in _REFUSED:
            if self.raw(name) not in _EMPTY:
                raise self.wrong(name, "none: slimc does not do what it asks for")

    def unknown(self) -> tuple[str, ...]:
        """The fields with values that slimc knows nothing of."""
        known = (*self._defaults, *_REFUSED, "head_dim", *_INERT.split())
        return tuple(name for name, value in self._values.items() if name not in known and value not in _EMPTY)


def read_fields(path: Path, config: Mapping[str, Any]) -> tuple[str, Fields]:
    """The model type, and the fields of its vision tower.

    Raises:
        CheckpointError: the type is not known, or computes something else.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in DEFAULTS:
        shown = repr(kind) if len(repr(kind)) <= 60 else f"{repr(kind)[:57]}..."
        raise CheckpointError(
            f"{path}: model_type is {shown}, which slimc does not know; expected {', '.join(DEFAULTS)}"
        )
    place, values = "", config
    if kind in WITH_TEXT:
        place = "vision_config_dict" if config.get("vision_config_dict") else "vision_config"
        values = config.get(place) or {}
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: {place} is a {type(values).__name__}; expected an object with its fields")
        place += "."
        # What may stand above the towers, such as code of the repository's own.
        Fields(path, "", config, {}).refuse(1, 1)
    fields = Fields(path, place, values, DEFAULTS[kind])
    fields.refuse(fields.count("num_attention_heads"), fields.count("hidden_size"))
    return kind, fields
