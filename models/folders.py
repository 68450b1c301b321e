"""Folders that hold a network in timm's or in Hugging Face's form, as what timm's and transformers' saving leaves.

Nothing is downloaded, and nothing in a folder is executed: configurations are JSON, weights are read as all checkpoints are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from slimc.errors import CheckpointError, OptionError
from slimc.models.folder_files import (
    CONFIG,
    FolderModule,
    FolderWeights,
    NotInitialised,
    fill,
    read_json,
    read_weights,
    require_timm,
)
from slimc.models.hugging_face import read_hugging_face

__all__ = ["FolderModule", "read_folder"]

_PREPROCESSING = ("mean", "std", "crop_pct", "crop_mode", "interpolation", "input_size")
# What would make timm load other weights, or give something else than the network.
_REFUSED = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "pretrained_strict",
    "checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "features_only", "out_indices", "feature_cfg",
    "device", "dtype",
)  # fmt: skip
# transformers' wrapper of timm's networks puts this before all names.
_WRAPPER = "timm_model."


def read_folder(
    folder: Path,
    *,
    image: tuple[int, int] | None = None,
    num_classes: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> FolderModule:
    """The network in `folder`.

    Args:
        folder: has config.json with ``architecture`` (timm's) or ``model_type`` (Hugging Face's), and the weights in
            model.safetensors or pytorch_model.bin, or in shards of these with an index.
        image: height and width; positions are resized to it. None takes the size that they are for.
        num_classes: 0 leaves out the classifier; None takes what there is, and any other number must be that.
        model_kwargs: further arguments of timm's, which override the folder's.

    Raises:
        CheckpointError: something in the folder is missing, damaged, or computes what timm has no module for.
        OptionError: an argument cannot be used with this network.
        MissingError: timm is not on this machine, or too old.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is no folder; expected one with {CONFIG} and weights")
    if not (folder / CONFIG).exists():
        raise CheckpointError(f"{folder}: has no {CONFIG}; expected timm's or Hugging Face's beside the weights")
    config = read_json(folder / CONFIG)
    given = dict(model_kwargs or {})
    _refuse(given)
    require_timm()
    if isinstance(config.get("architecture"), str):
        return _read_timm(folder, config, image, num_classes, given)
    if "model_type" in config:
        return read_hugging_face(folder, config, image=image, num_classes=num_classes, model_kwargs=given)
    raise CheckpointError(
        f"{folder / CONFIG}: has neither architecture nor model_type; expected timm's or Hugging Face's configuration"
    )


def _refuse(given: Iterable[str]) -> None:
    for name in given:
        if name in _REFUSED:
            raise OptionError(f"the argument {name} cannot be given: it is no argument of a network")


def _read_timm(
    folder: Path,
    config: Mapping[str, Any],
    image: tuple[int, int] | None,
    num_classes: int | None,
    given: Mapping[str, Any],
) -> FolderModule:
    """The network whose configuration timm wrote."""
    path = folder / CONFIG
    name, arguments = config["architecture"], _object(path, config, "model_args")
    published = _object(path, config, "pretrained_cfg")
    module = create_module(path, name, {**_stated(config, published), **arguments, **given}, tuple(given))
    weights = read_weights(folder)
    warnings = [*weights.warnings, *load_state(module, weights)]
    if image is not None:
        resize_module(module, image)
    choose_classes(module, num_classes)
    args = {key: published[key] for key in _PREPROCESSING if published.get(key) is not None}
    size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    if size is not None:
        args["input_size"] = (_channels(module), *size)
    return FolderModule(module.eval(), name, args, weights.sha256, tuple(warnings))


def _object(path: Path, config: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {name} is a {type(value).__name__}; expected an object")
    return value


def _stated(config: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that stand elsewhere than among model_args, as older releases of timm left them."""
    found: dict[str, Any] = {}
    classes = config.get("num_classes", published.get("num_classes"))
    if isinstance(classes, int):
        found["num_classes"] = classes
    if isinstance(config.get("global_pool"), str):
        found["global_pool"] = config["global_pool"]
    size = published.get("input_size")
    if isinstance(size, list) and len(size) == 3:
        found["in_chans"] = size[0]
        if published.get("fixed_input_size"):
            found["img_size"] = tuple(size[1:])
    return found


def create_module(path: Path, name: str, arguments: Mapping[str, Any], given: tuple[str, ...]) -> torch.nn.Module:
    """A network of timm's, by its name, with whatever weights.

    Raises:
        CheckpointError: timm has none, or does not take the file's arguments.
        OptionError: it does not take those that are `given`.
    """
    import timm

    _refuse(given)
    refused = sorted(set(arguments) & set(_REFUSED))
    if refused:
        raise CheckpointError(f"{path}: has {refused[0]} for {name[:60]!r}, which is no argument of a network")
    if not timm.is_model(name.partition(".")[0]):
        raise CheckpointError(
            f"{path}: architecture is {name[:60]!r}, which this timm ({timm.__version__}) does not have; expected one of "
            "timm.list_models()"
        )
    try:
        with torch.random.fork_rng(devices=[]), NotInitialised():
            module: torch.nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if given:
            raise OptionError(f"arguments {', '.join(given)}: timm refuses them for {name}: {reason}") from None
        raise CheckpointError(f"{path}: timm cannot build {name} with these model_args: {reason}") from None
    return module.float()


def load_state(module: torch.nn.Module, weights: FolderWeights) -> list[str]:
    """Fill in the weights; those under an older release's names are renamed as timm does. Says what was done."""
    state = dict(weights.state)
    if state and all(name.startswith(_WRAPPER) for name in state):
        state = {name.removeprefix(_WRAPPER): tensor for name, tensor in state.items()}
    own = module.state_dict().keys()
    renamed = _renamed(module, state) if state.keys() != own else None
    if renamed is None or renamed.keys() != own:
        fill(module, state, weights.path)
        return []
    fill(module, renamed, weights.path)
    return [f"{weights.path}: weights were renamed as timm does for those of other sources"]


def _renamed(module: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """What timm makes of a published state dict before it loads it; none where it makes nothing of it."""
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    try:
        return None if convert is None else dict(convert(dict(state), module))
    except Exception:  # timm's conversions take it for granted that there are the names which they look for
        return None


def resize_module(module: torch.nn.Module, image: tuple[int, int]) -> None:
    """Resize positions for images of the size `image`, as timm does."""
    size = f"the image size {image[0]}x{image[1]}"
    patches = getattr(module, "patch_embed", None)
    resize = getattr(module, "set_input_size", None)
    if patches is None or resize is None:
        raise OptionError(f"{size}: timm cannot resize a {type(module).__name__}; expected its own size")
    patch = tuple(patches.patch_size)
    if min(image) < 1 or image[0] % patch[0] or image[1] % patch[1]:
        raise OptionError(
            f"{size} is no multiple of the patches' {patch[0]}x{patch[1]} pixels; expected height and width that are"
        )
    if tuple(patches.img_size or ()) != image:
        resize(img_size=image)


def choose_classes(module: torch.nn.Module, wanted: int | None) -> None:
    """Leave out the classifier where 0 classes are `wanted`."""
    there = getattr(module, "num_classes", None)
    if wanted is None or wanted == there:
        return
    reset = getattr(module, "reset_classifier", None)
    if wanted != 0 or reset is None:
        have = f"has {there} classes" if there else "has no classifier"
        raise OptionError(f"{wanted} classes: the network {have}; expected {there}, or 0 for features")
    reset(0)


def _channels(module: torch.nn.Module) -> int:
    channels = getattr(module, "in_chans", None)
    return channels if isinstance(channels, int) else next(p.shape[1] for p in module.parameters() if p.ndim == 4)
