"""Folders in timm's form are read as timm reads them, and whatever else there may be is refused in one line."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from slimc.errors import CheckpointError, MissingError, OptionError
from slimc.models.folders import read_folder

TINY: dict[str, Any] = {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": 32}
KINDS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {**TINY, "num_classes": 5},
    "vit_small_patch14_reg4_dinov2.lvd142m": {**TINY, "img_size": 28, "num_classes": 0},
    "vit_base_patch16_siglip_224": {**TINY, "num_classes": 0},
    "vit_base_patch16_clip_224.openai": {**TINY, "num_classes": 7},
    "deit_tiny_distilled_patch16_224": {**TINY, "num_classes": 5},
    "vit_small_patch16_dinov3": {**TINY, "num_heads": 2, "num_classes": 0},
    "eva02_tiny_patch14_224": {**TINY, "img_size": 28, "num_heads": 2, "num_classes": 5, "global_pool": "token"},
    "vit_base_patch16_rope_reg1_gap_256": {**TINY, "num_heads": 2, "num_classes": 5},
}


def network(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False, **{**KINDS[name], **changes}).eval()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def saved(module: Any, folder: Path, **options: Any) -> Path:
    from timm.models._hub import save_for_hf

    save_for_hf(module, str(folder), **{"safe_serialization": True, **options})
    return folder


def plain(folder: Path, config: Any = None, state: Any = None) -> Path:
    """A folder as one writes it by hand."""
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(text)
    if state is not None:
        torch.save(state, folder / "pytorch_model.bin")
    return folder


def vit(**changes: Any) -> dict[str, Any]:
    arguments = {key: value for key, value in KINDS["vit_tiny_patch16_224"].items() if key != "num_classes"}
    return {"architecture": "vit_tiny_patch16_224", "num_classes": 5, "model_args": arguments, **changes}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("form", [True, False], ids=["safetensors", "bin"])
def test_what_timm_saved_is_read(name, form, tmp_path):
    module = network(name)
    folder = saved(module, tmp_path, safe_serialization=form)
    read = read_folder(folder)
    images = torch.randn(2, 3, *module.patch_embed.img_size)
    assert torch.equal(read.module(images), module(images))
    assert not read.module.training
    assert read.name == name.partition(".")[0]
    assert read.warnings == ()
    cfg = module.pretrained_cfg
    assert read.args["input_size"] == (3, *module.patch_embed.img_size)
    assert tuple(read.args["mean"]) == cfg["mean"]
    assert (read.args["crop_pct"], read.args["interpolation"]) == (cfg["crop_pct"], cfg["interpolation"])
    file = folder / ("model.safetensors" if form else "pytorch_model.bin")
    assert read.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_reading_leaves_the_random_numbers_alone(tmp_path):
    folder = saved(network("vit_tiny_patch16_224"), tmp_path)
    torch.manual_seed(3)
    wanted = torch.randn(4)
    torch.manual_seed(3)
    read_folder(folder)
    assert torch.equal(torch.randn(4), wanted)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "deit_tiny_distilled_patch16_224"]
)
def test_another_size_is_what_timm_makes_of_it(name, tmp_path):
    module = network(name)
    read = read_folder(saved(module, tmp_path), image=(48, 64))
    module.set_input_size(img_size=(48, 64))
    images = torch.randn(1, 3, 48, 64)
    assert torch.equal(read.module(images), module(images))
    assert read.args["input_size"] == (3, 48, 64)
    with pytest.raises(OptionError, match="is no multiple of the patches' 16x16 pixels"):
        read_folder(tmp_path, image=(48, 50))


def test_features_instead_of_classes(tmp_path):
    module = network("vit_tiny_patch16_224")
    folder = saved(module, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    features = module.forward_head(module.forward_features(images), pre_logits=True)
    assert torch.equal(read_folder(folder, num_classes=0).module(images), features)
    assert torch.equal(read_folder(folder, num_classes=5).module(images), module(images))
    with pytest.raises(OptionError, match="3 classes: the network has 5 classes; expected 5, or 0 for features"):
        read_folder(folder, num_classes=3)


def test_what_older_releases_left_is_enough(tmp_path):
    """They wrote no model_args: size and channels are in pretrained_cfg."""
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=48, in_chans=1, num_classes=3).eval()
    published = {"input_size": [1, 48, 48], "fixed_input_size": True, "mean": [0.5], "std": [0.5], "crop_pct": None}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "pretrained_cfg": published}
    folder = plain(tmp_path, config, module.state_dict())
    read = read_folder(folder, model_kwargs={"depth": 1})
    images = torch.randn(1, 1, 48, 48)
    assert torch.equal(read.module(images), module(images))
    assert read.args == {"input_size": (1, 48, 48), "mean": [0.5], "std": [0.5]}


def test_transformers_wrapper_of_timms_networks(tmp_path):
    module = network("vit_tiny_patch16_224")
    state = {f"timm_model.{name}": tensor for name, tensor in module.state_dict().items()}
    read = read_folder(plain(tmp_path, vit(model_type="timm_wrapper"), state))
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(read.module(images), module(images))


def test_names_of_other_sources_are_those_that_timm_knows(tmp_path):
    """DINOv2's own release has other names for registers, and a token for masked patches."""
    module = network("vit_small_patch14_reg4_dinov2.lvd142m")
    state = dict(module.state_dict())
    position = torch.randn(1, 1, 24)
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - position
    state["register_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.zeros(1, 24)
    arguments = KINDS["vit_small_patch14_reg4_dinov2.lvd142m"]
    config = {"architecture": "vit_small_patch14_reg4_dinov2", "model_args": arguments}
    read = read_folder(plain(tmp_path, config, state))
    images = torch.randn(1, 3, 28, 28)
    torch.testing.assert_close(read.module(images), module(images))
    assert ["weights were renamed as timm does" in warning for warning in read.warnings] == [True]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, r"has no config\.json; expected timm's or Hugging Face's"),
        ("[1, 2]", "holds a list; expected a JSON object"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ({"hidden_size": 3}, "has neither architecture nor model_type"),
        ({"architecture": "vit_nonesuch"}, "architecture is 'vit_nonesuch', which this timm .* does not have"),
        ({"architecture": "hf-hub:timm/vit_tiny_patch16_224"}, "architecture is 'hf-hub:timm/.* does not have"),
        ({"architecture": "local-dir:/tmp"}, "architecture is 'local-dir:/tmp', which this timm"),
        (
            vit(model_args={"checkpoint_path": "evil.pth"}),
            "has checkpoint_path for 'vit_tiny_patch16_224', which is no argument",
        ),
        (vit(model_args={"pretrained": True}), "has pretrained for .*, which is no argument"),
        (vit(model_args=[]), "has no weights"),
        (vit(model_args=[3]), "model_args is a list; expected an object"),
        (vit(model_args={"wings": 2}), "timm cannot build vit_tiny_patch16_224 with these model_args: .*wings"),
    ],
)
def test_a_configuration_that_says_nothing_sensible_is_refused(config, said, tmp_path):
    with pytest.raises(CheckpointError, match=said) as caught:
        read_folder(plain(tmp_path, config))
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is no folder; expected one with"):
        read_folder(tmp_path / "facebook" / "dinov2-small")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: {k: v for k, v in s.items() if k != "norm.bias"},
            r"has no norm\.bias: not the weights of this network",
        ),
        (lambda s: {**s, "extra": torch.ones(3)}, "has an unexpected extra"),
        (lambda s: {**s, "norm.bias": torch.ones(3)}, r"norm\.bias has the shape \[3\], expected \[24\]"),
        (lambda s: {**s, "norm.bias": torch.full((24,), torch.inf)}, r"norm\.bias has NaN or Inf"),
        (lambda s: {**s, "norm.bias": torch.ones(24, dtype=torch.int32)}, "expected floating-point weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, said, tmp_path):
    folder = plain(tmp_path, vit(), change(network("vit_tiny_patch16_224").state_dict()))
    with pytest.raises(CheckpointError, match=said):
        read_folder(folder)


def test_nothing_in_a_file_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    state = {**network("vit_tiny_patch16_224").state_dict(), "evil": Evil()}
    folder = plain(tmp_path, vit(), state)
    read_folder(folder)
    torch.save(Evil(), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        read_folder(folder)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"a": 3}}, "has no weight_map"),
        ({"weight_map": {"norm.bias": "../model.safetensors"}}, r"names the file '\.\./model\.safetensors'"),
        ({"weight_map": {"norm.bias": "missing.safetensors"}}, r"missing\.safetensors: no such file"),
        ({"weight_map": {"wings": "part.safetensors"}}, r"says that part\.safetensors has wings, but it has not"),
        ({"weight_map": {"norm.bias": "part.safetensors"}}, r"does not name .*, which part\.safetensors has"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(index, said, tmp_path):
    from safetensors.torch import save_file

    folder = plain(tmp_path, vit())
    save_file(network("vit_tiny_patch16_224").state_dict(), folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=said):
        read_folder(folder)


def test_without_timm_it_is_said_what_to_install(tmp_path, monkeypatch):
    folder = plain(tmp_path, vit())
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingError, match=r"timm, which cannot be imported .*pip install 'slimc\[timm\]'"):
        read_folder(folder)
