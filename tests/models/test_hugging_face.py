"""Networks that transformers saved compute in timm's modules what transformers computes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slimc.errors import CheckpointError, OptionError
from slimc.models.folders import FolderModule, read_folder
from tests.models.transformers_networks import (
    CONCATENATED,
    DIM,
    NETWORKS,
    PATCH,
    SIDE,
    build,
    hf,
    pictures,
    run,
    save,
)

MOST = 1e-9


def agree(found: Tensor, wanted: Tensor, most: float = MOST) -> None:
    assert found.shape == wanted.shape
    spread = float(wanted.max() - wanted.min())
    assert spread > 0.1
    assert float((found - wanted).abs().max()) <= most * spread


def outputs(read: FolderModule, images: Tensor) -> dict[str, Tensor]:
    module: Any = read.module.double()
    with torch.no_grad():
        tokens = module.forward_features(images)
        return {"tokens": tokens, "pooled": module.forward_head(tokens, pre_logits=True), "logits": module(images)}


def same_rotations(read: FolderModule, model: Any, images: Tensor) -> None:
    """Both make the same rotations but for rounding; then timm's get those of transformers, to compare the rest."""
    rope: Any = read.module.rope
    cos, sin = model.double().rope_embeddings(images)
    assert float((rope.pos_embed_cached - torch.cat([sin, cos], dim=1)).abs().max()) < 1e-6
    rope.pos_embed_cached = torch.cat([sin, cos], dim=1)


def changed(folder: Path, **changes: Any) -> Path:
    """The folder with other fields in its configuration; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def rewritten(folder: Path, change: Any) -> Path:
    """The folder with other weights, of the kind that torch saves."""
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(change(state), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_the_same(name, tmp_path):
    model = build(NETWORKS[name])
    read = read_folder(save(model, tmp_path))
    images = pictures(model)
    if name.startswith("dinov3"):
        same_rotations(read, model, images)
    assert not read.module.training
    assert {p.dtype for p in read.module.parameters()} == {torch.float32}
    found = outputs(read, images)
    wanted = run(model, images)
    assert wanted
    for key, value in wanted.items():
        agree(found[key], value)
    if "pooled" not in wanted and "logits" not in wanted and read.module.global_pool == "token":
        agree(found["logits"], wanted["tokens"][:, 0])
    assert read.name == model.config.model_type
    assert read.args["input_size"] == (images.shape[1], *images.shape[2:])


@pytest.mark.parametrize("name", NETWORKS)
def test_names_of_the_modules_are_those_of_the_files(name, tmp_path):
    """What torch.save writes of a module has the names of this release, which files do not have."""
    model = build(NETWORKS[name])
    read = read_folder(save(model, tmp_path / "files"))
    folder = save(model, tmp_path / "module")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    again = read_folder(folder)
    assert read.sha256 != again.sha256
    state = again.module.state_dict()
    for key, value in read.module.state_dict().items():
        assert torch.equal(state[key], value)


@pytest.mark.parametrize("name", CONCATENATED)
def test_a_classifier_of_two_features_is_given_apart(name, tmp_path):
    model = build(CONCATENATED[name])
    read = read_folder(save(model, tmp_path))
    images = pictures(model)
    assert read.concatenated_head is not None
    weight, bias = read.concatenated_head
    assert bias is not None
    tokens = outputs(read, images)["tokens"]
    features = torch.cat([tokens[:, 0], tokens[:, read.module.num_prefix_tokens :].mean(dim=1)], dim=1)
    agree(features @ weight.double().T + bias.double(), run(model, images)["logits"])
    assert any("which timm has no module for" in warning for warning in read.warnings)
    without = read_folder(tmp_path, num_classes=0)
    assert without.concatenated_head is None
    agree(outputs(without, images)["logits"], tokens[:, 0])


def test_shards_are_one_network(tmp_path):
    model = build(NETWORKS["dinov2-registers"])
    whole = read_folder(save(model, tmp_path / "whole"))
    folder = save(model, tmp_path / "shards", max_shard_size="8KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    read = read_folder(folder)
    for key, value in whole.module.state_dict().items():
        assert torch.equal(read.module.state_dict()[key], value)
    assert len(read.sha256) == 64
    assert read.sha256 != whole.sha256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype, tmp_path):
    model = build(NETWORKS["vit-classifier"]).to(dtype)
    read = read_folder(save(model, tmp_path))
    images = pictures(model)
    agree(outputs(read, images)["logits"], run(model, images)["logits"])


@pytest.mark.parametrize("name", ["vit-classifier", "deit-teacher", "dinov2-registers", "clip", "siglip"])
def test_positions_are_resized_as_timm_does(name, tmp_path):
    folder = save(build(NETWORKS[name]), tmp_path)
    image = (5 * PATCH, 4 * PATCH)
    read = read_folder(folder, image=image)
    module: Any = read_folder(folder).module
    module.set_input_size(img_size=image)
    for key, value in module.state_dict().items():
        assert torch.equal(read.module.state_dict()[key], value)
    assert read.args["input_size"] == (3, *image)
    assert any("positions were resized from 3x3 to 5x4 patches" in warning for warning in read.warnings)
    images = torch.randn(1, 3, *image)
    assert torch.equal(read.module(images), module(images))


@pytest.mark.parametrize("name", ["dinov3", "siglip2"])
@pytest.mark.parametrize("image", [(5 * PATCH, 4 * PATCH), (2 * PATCH, 2 * PATCH)])
def test_networks_for_any_grid_are_exact_for_every_one(name, image, tmp_path):
    model = build(NETWORKS[name])
    read = read_folder(save(model, tmp_path), image=image)
    images = pictures(model, image=image)
    if name == "dinov3":
        same_rotations(read, model, images)
    # transformers resizes in float32.
    agree(outputs(read, images)["pooled"], run(model, images)["pooled"], 1e-6 if name == "siglip2" else MOST)
    assert not any("resized from" in warning for warning in read.warnings)


def test_features_instead_of_classes(tmp_path):
    model = build(NETWORKS["vit-classifier"])
    folder = save(model, tmp_path)
    images = pictures(model)
    tokens = run(model, images)["tokens"]
    agree(outputs(read_folder(folder, num_classes=0), images)["logits"], tokens[:, 0])
    assert outputs(read_folder(folder, num_classes=5), images)["logits"].shape == (2, 5)
    with pytest.raises(OptionError, match="7 classes: the network has 5 classes; expected 5, or 0"):
        read_folder(folder, num_classes=7)
    teacher = build(NETWORKS["deit-teacher"])
    read = read_folder(save(teacher, tmp_path / "teacher"), num_classes=0)
    agree(outputs(read, images)["logits"], run(teacher, images)["tokens"][:, 0])
    with pytest.raises(OptionError, match="has no classifier"):
        read_folder(save(build(NETWORKS["dinov2"]), tmp_path / "dinov2"), num_classes=7)


def test_further_arguments_are_timms(tmp_path):
    model = build(NETWORKS["dinov2"])
    folder = save(model, tmp_path)
    read = read_folder(folder, model_kwargs={"global_pool": "avg"})
    images = pictures(model)
    agree(outputs(read, images)["logits"], run(model, images)["tokens"][:, 1:].mean(dim=1))
    with pytest.raises(OptionError, match="arguments wings: timm refuses them"):
        read_folder(folder, model_kwargs={"wings": 2})
    with pytest.raises(OptionError, match="the argument pretrained cannot be given"):
        read_folder(folder, model_kwargs={"pretrained": True})
    with pytest.raises(CheckpointError, match=r"has no blocks\.2\."):
        read_folder(folder, model_kwargs={"depth": 3})


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("vit", "the pooler"),
        ("deit", "the pooler"),
        ("vit-masked", "2 weights of the decoder"),
        ("mae-pretraining", "weights of the decoder"),
        ("clip-both", "weights of the text tower"),
        ("siglip-both", "weights of the text tower"),
        ("siglip2-both", "weights of the text tower"),
        ("siglip-classifier", "weights of the attention pool"),
    ],
)
def test_what_is_left_out_is_said(name, left, tmp_path):
    warnings = read_folder(save(build(NETWORKS[name]), tmp_path)).warnings
    assert any("left out" in warning and left in warning for warning in warnings)


@pytest.mark.parametrize("name", ["vit-classifier", "dinov2", "dinov3", "siglip", "siglip2", "clip", "mae"])
def test_nothing_else_is_said(name, tmp_path):
    (warning,) = read_folder(save(build(NETWORKS[name]), tmp_path)).warnings
    assert "has no preprocessor_config.json" in warning


def test_defaults_of_a_shortened_configuration(tmp_path):
    """Towers' configurations may have only what is not the default; every default here is that of transformers."""
    from slimc.models.hugging_face_config import DEFAULTS

    for kind, defaults in DEFAULTS.items():
        config = hf.AutoConfig.for_model(kind)
        tower = getattr(config, "vision_config", config)
        for name, value in defaults.items():
            assert getattr(tower, name) == value, f"{kind}: {name}"
    model = build(NETWORKS["clip-both"])
    folder = save(model, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for name in ("layer_norm_eps", "hidden_act", "num_channels"):
        del config["vision_config"][name]
    changed(folder, vision_config=config["vision_config"])
    agree(outputs(read_folder(folder), pictures(model))["logits"], run(model, pictures(model))["logits"])
    tower = {**config["vision_config"], "hidden_act": "gelu"}
    module: Any = read_folder(changed(folder, vision_config_dict=tower)).module
    assert isinstance(module.blocks[0].mlp.act, torch.nn.GELU)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("vit", {"model_type": "swin"}, "model_type is 'swin', which slimc does not know; expected vit, deit,"),
        ("vit", {"hidden_act": "mish"}, "hidden_act is 'mish'; expected one of gelu,"),
        ("vit", {"num_hidden_layers": 3}, r"the state dict has no blocks\.2\."),
        ("vit", {"num_hidden_layers": 1}, r"unexpected encoder\.layer\.1\."),
        ("vit", {"num_hidden_layers": "2"}, "num_hidden_layers is '2'; expected a whole number"),
        ("vit", {"num_attention_heads": 5}, "num_attention_heads is 5; expected a divisor of hidden_size, 24"),
        ("vit", {"image_size": [12, 16]}, r"position_embeddings has the shape \[1, 10, 24\], expected \[1, 13, 24\]"),
        ("vit", {"patch_size": 2}, r"projection\.weight has the shape \[24, 1, 4, 4\], expected \[24, 1, 2, 2\]"),
        ("vit", {"image_size": 3}, "image_size is 3; expected at least the patches' 4x4"),
        ("vit", {"image_size": [1, 2, 3]}, "image_size is .*; expected a whole number of pixels, or two"),
        ("vit", {"qkv_bias": False}, r"unexpected encoder\.layer\.0\.attention\.attention\.key\.bias"),
        ("vit", {"qkv_bias": 1}, "qkv_bias is 1; expected true or false"),
        ("vit", {"layer_norm_eps": -1.0}, "layer_norm_eps is -1.0; expected a positive number"),
        ("vit", {"head_dim": 4}, "head_dim is 4; expected 8"),
        ("vit", {"pruned_heads": {"0": [1]}}, "pruned_heads is .*; expected none"),
        ("vit", {"auto_map": {"AutoModel": "code.Model"}}, "auto_map is .*; expected none"),
        ("vit", {"quantization_config": {"bits": 8}}, "quantization_config is .*; expected none"),
        ("vit", {"architectures": ["ViTForImageClassification"]}, r"has no classifier\.weight, which ViTFor"),
        ("clip", {"architectures": ["CLIPVisionModelWithProjection"]}, r"has no visual_projection\.weight"),
        ("clip-both", {"projection_dim": 9}, r"visual_projection\.weight has the shape \[7, 24\], expected \[9, 24\]"),
        ("clip-both", {"auto_map": {"AutoModel": "code.Model"}}, "auto_map is .*; expected none"),
        ("clip-both", {"vision_config": 3}, "vision_config is a int; expected an object"),
        ("clip-both", {"vision_config": None}, "expected"),
        ("dinov2", {"image_size": [12, 16]}, "image_size is .*; expected a square of patches"),
        ("dinov2", {"use_swiglu_ffn": True}, r"mlp\.fc1"),
        ("dinov2-registers", {"num_register_tokens": 2}, r"register_tokens has the shape \[1, 3, 24\]"),
        ("dinov3", {"num_attention_heads": 4}, "heads of a multiple of 4 channels"),
        ("dinov3", {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters is .*; expected none"),
        ("dinov3", {"use_gated_mlp": True}, r"no blocks\.0\.mlp\.gate"),
        ("siglip", {"vision_use_head": False}, r"unexpected head\.attention"),
        ("siglip2", {"num_patches": 8}, "num_patches is 8; expected a square number"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(name, changes, said, tmp_path):
    folder = changed(save(build(NETWORKS[name]), tmp_path), **changes)
    with pytest.raises(CheckpointError, match=said) as caught:
        read_folder(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


def test_unknown_fields_are_warned_of(tmp_path):
    folder = changed(save(build(NETWORKS["vit"]), tmp_path), window_size=7, stirred=False)
    said = [warning for warning in read_folder(folder).warnings if "slimc knows nothing of" in warning]
    assert len(said) == 1
    assert "window_size" in said[0]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("vit", lambda s: {**s, "encoder.extra.weight": torch.ones(3)}, r"unexpected encoder\.extra\.weight"),
        ("vit", lambda s: {**s, "layers.0.attention.q_proj.bias": torch.ones(DIM)}, r"unexpected layers\.0\."),
        ("vit", lambda s: {k: v for k, v in s.items() if "layernorm.b" not in k}, r"has no norm\.bias"),
        ("vit", lambda s: {**s, "layernorm.bias": torch.full((DIM,), torch.nan)}, r"layernorm\.bias has NaN"),
        ("vit", lambda s: {**s, "layernorm.bias": torch.ones(DIM, dtype=torch.int8)}, "expected floating-point"),
        ("clip", lambda s: {**s, "text_model.final_layer_norm.bias": torch.ones(3)}, r"unexpected text_model\."),
        ("dinov3", lambda s: {**s, "classifier.weight": torch.ones(3, DIM)}, r"unexpected classifier\.weight"),
        ("mae", lambda s: {**s, "classifier.weight": torch.ones(3, DIM)}, r"unexpected classifier\.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(name, change, said, tmp_path):
    folder = rewritten(save(build(NETWORKS[name]), tmp_path), change)
    with pytest.raises(CheckpointError, match=said):
        read_folder(folder)


def test_numbers_of_positions_are_known(tmp_path):
    """Older releases stored them, and they are no weights."""
    model = build(NETWORKS["clip"])
    folder = rewritten(
        save(model, tmp_path), lambda s: {**s, "vision_model.embeddings.position_ids": torch.arange(10)[None]}
    )
    agree(outputs(read_folder(folder), pictures(model))["pooled"], run(model, pictures(model))["pooled"])


def test_a_size_that_is_no_multiple_of_the_patches_is_refused(tmp_path):
    folder = save(build(NETWORKS["vit"]), tmp_path)
    for image in ((SIDE, SIDE + 1), (0, SIDE)):
        with pytest.raises(OptionError, match="is no multiple of the patches' 4x4 pixels"):
            read_folder(folder, image=image)
