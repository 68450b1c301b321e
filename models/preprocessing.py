"""How the images of a checkpoint's training became inputs: what its file says, what options say, else ImageNet's.

Training scripts store timm's arguments (`mean`, `std`, `crop_pct`, `interpolation`, `input_size` or `img_size`), that of
DynamicViT `imagenet_default_mean_and_std` as well, and timm itself a `pretrained_cfg` with the same names. As in timm,
arguments come before the configuration. Options override both, which is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slimc.errors import CheckpointError, OptionError, UserError
from slimc.ir.preprocessing import CROP_PCT, IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS, Preprocessing
from slimc.models.options import ModelOptions, flag

if TYPE_CHECKING:
    from slimc.files.checkpoint import Checkpoint

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "NAMES", "Preprocessing", "input_size", "override", "read_preprocessing"]

NAMES = ("mean", "std", "crop_pct", "interpolation")
_CONFIGS = ("pretrained_cfg", "default_cfg")
_INCEPTION = (0.5, 0.5, 0.5)
# The released evaluations crop nothing from images as small as CIFAR's, and DynamicViT's nothing from large ones.
_SMALL, _LARGE = 32, 384


def read_preprocessing(
    checkpoint: Checkpoint, image: tuple[int, int], options: ModelOptions, *, channels: int = 3
) -> tuple[Preprocessing, tuple[str, ...]]:
    """How images become inputs of `channels` channels and the size `image`, and what a user should know about it.

    Raises:
        CheckpointError: the file says something that cannot be done.
        OptionError: an option does.
    """
    stored = _stored(checkpoint)
    found: dict[str, Any] = {}
    warnings: list[str] = []
    for name in NAMES:
        given = getattr(options, name)
        if given is not None:
            found[name] = _checked(name, given, channels, flag(name), OptionError)
            warnings += _overridden(checkpoint, name, found[name], stored, channels)
        elif name in stored:
            source, value = stored[name]
            wrong = f"{checkpoint.path}: {source}"
            found[name] = _checked(name, value, channels, wrong, CheckpointError, f"; give {flag(name)}")
    assumed = [name for name in ("mean", "std") if name not in found]
    if assumed:
        names = {"mean": "mean", "std": "standard deviation"}
        warnings.append(
            f"{checkpoint.path}: does not say how images were normalised: ImageNet's "
            f"{' and '.join(names[name] for name in assumed)} are assumed; "
            f"give {' and '.join(flag(name) for name in assumed)} where they were others"
        )
    default = _default_crop(checkpoint, image)
    if "crop_pct" not in found and default == 1.0 and min(image) >= _LARGE:
        warnings.append(
            f"{checkpoint.path}: its own evaluation squashes images to {image[0]}x{image[1]} pixels; slimc keeps their "
            "aspect and crops"
        )
    preprocessing = Preprocessing(
        mean=found.get("mean", _assumed(IMAGENET_MEAN, channels)),
        std=found.get("std", _assumed(IMAGENET_STD, channels)),
        crop_pct=found.get("crop_pct", default),
        interpolation=found.get("interpolation", "bicubic"),
    )
    return preprocessing, tuple(warnings)


def override(preprocessing: Preprocessing, options: Mapping[str, Any]) -> Preprocessing:
    """`preprocessing` with what `options` say otherwise; those that are None, or say something else, say nothing.

    Raises:
        OptionError: an option cannot be used.
    """
    changes = {
        name: _checked(name, options[name], len(preprocessing.mean), flag(name), OptionError)
        for name in NAMES
        if options.get(name) is not None
    }
    return Preprocessing(**{**{name: getattr(preprocessing, name) for name in NAMES}, **changes})


def input_size(args: Mapping[str, Any]) -> object:
    """The input size that the training arguments state, for `slimc.models.geometry.image_size`; none where they do not."""
    sizes = [args.get("input_size"), args.get("img_size"), *(values.get("input_size") for _, values in _configs(args))]
    return next((size for size in sizes if size is not None), None)


def _configs(args: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The configurations of timm, which `slimc.files.checkpoint` puts among the training arguments, by name."""
    return [(name, config) for name in _CONFIGS if isinstance(config := args.get(name), Mapping)]


def _stored(checkpoint: Checkpoint) -> dict[str, tuple[str, Any]]:
    """What the file says, by name: where it stands there, and the value.

    Raises:
        CheckpointError: it says that images were squashed or padded.
    """
    places = [("args", checkpoint.args), *_configs(checkpoint.args)]
    found: dict[str, tuple[str, Any]] = {}
    for place, values in places:
        for name in NAMES:
            if values.get(name) not in (None, "") and name not in found:
                found[name] = (f"{place}.{name}", values[name])
        imagenet = values.get("imagenet_default_mean_and_std")
        if isinstance(imagenet, bool):
            source = f"{place}.imagenet_default_mean_and_std"
            found.setdefault("mean", (source, IMAGENET_MEAN if imagenet else _INCEPTION))
            found.setdefault("std", (source, IMAGENET_STD if imagenet else _INCEPTION))
    mode = next((mode for _, values in places if (mode := values.get("crop_mode")) not in (None, "")), "center")
    if mode != "center":
        raise CheckpointError(f"{checkpoint.path}: crop_mode is {mode!r}, which slimc does not do; expected 'center'")
    return found


def _overridden(
    checkpoint: Checkpoint, name: str, value: object, stored: Mapping[str, tuple[str, Any]], channels: int
) -> Iterable[str]:
    """What to say where an option contradicts the file."""
    if name not in stored:
        return
    source, said = stored[name]
    try:
        own: object = _checked(name, said, channels, source, CheckpointError)
    except UserError:
        own = said
    if own != value:
        yield f"{checkpoint.path}: {flag(name)} {_text(value)} overrides {source}, which is {_text(own)}"


def _default_crop(checkpoint: Checkpoint, image: tuple[int, int]) -> float:
    dynamic_vit = "imagenet_default_mean_and_std" in checkpoint.args
    return 1.0 if max(image) <= _SMALL or (dynamic_vit and min(image) >= _LARGE) else CROP_PCT


def _assumed(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """ImageNet's `values`, or their mean for other channels than colours."""
    return values if channels == len(values) else (round(sum(values) / len(values), 6),) * channels


def _checked(
    name: str, value: object, channels: int, source: str, error: type[UserError], hint: str = ""
) -> tuple[float, ...] | float | str:
    """`value` as the field `name` of `Preprocessing` is; `source` is where it was said, `hint` what to do instead."""
    if name == "interpolation":
        if value in INTERPOLATIONS:
            return str(value)
        raise error(f"{source}: {value!r} is no interpolation; expected {', '.join(INTERPOLATIONS)}{hint}")
    if name == "crop_pct":
        if _is_number(value) and 0 < value <= 1:  # type: ignore[operator]
            return float(value)  # type: ignore[arg-type]
        raise error(f"{source}: {value!r} is no share of an image; expected a number above 0 and up to 1{hint}")
    numbers = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not numbers or not all(_is_number(number) and (name == "mean" or number > 0) for number in numbers):
        kind = "numbers" if name == "mean" else "positive numbers"
        raise error(f"{source}: {_text(value)} cannot be used; expected {kind}, one for each channel{hint}")
    if len(numbers) == 1:
        numbers *= channels
    elif channels == 1 and len(set(numbers)) == 1:
        numbers = numbers[:1]
    if len(numbers) != channels:
        raise error(f"{source}: {_text(value)} are {len(numbers)} numbers for images of {channels} channel(s){hint}")
    return tuple(float(number) for number in numbers)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: object) -> str:
    return " ".join(f"{v:g}" if _is_number(v) else str(v) for v in value) if isinstance(value, tuple) else str(value)
