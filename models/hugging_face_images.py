"""How Hugging Face's image processors prepare images, in timm's terms: resize the shorter side, crop the centre."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimc.errors import CheckpointError
from slimc.models.folder_files import read_json

_FILE = "preprocessor_config.json"
# Where newer releases put it, beside a tokenizer's.
_JOINED = "processor_config.json"
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_RANGE = 255.0
# Model types whose processors take a lone number for the shorter side.
_SHORTER = ("clip", "clip_vision_model", "dinov2", "dinov2_with_registers")
_BILINEAR = ("vit", "vit_mae", "dinov3_vit", "siglip2", "siglip2_vision_model")
_ELSE = ("do_flip_channel_order", "rescale_offset", "offset", "do_reduce_labels", "do_pad")


def read_images(
    folder: Path, kind: str, image: tuple[int, int], channels: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """How images become inputs of the size `image`, by timm's names, and what a user should know about it.

    Raises:
        CheckpointError: the folder says something that cannot be done.
    """
    args: dict[str, Any] = {"input_size": (channels, *image)}
    path, values = _file(folder)
    if values is None:
        return args, (f"{folder}: has no {_FILE}: how images are prepared is not known",)
    args |= {**_colours(path, values), "interpolation": _interpolation(path, kind, values)}
    args["crop_pct"], squashes, delivered, warnings = _geometry(path, kind, values, image)
    warnings += [f"{path}: {name} is set, which slimc does not do" for name in _ELSE if values.get(name)]
    if squashes:
        warnings.append(f"{path}: images are squashed there to one size; here they keep their aspect and are cropped")
    if delivered is not None and delivered != image:
        warnings.append(
            f"{path}: images are made {delivered[0]}x{delivered[1]} pixels there; the network is compiled for "
            f"{image[0]}x{image[1]}"
        )
    return args, tuple(warnings)


def _file(folder: Path) -> tuple[Path, Mapping[str, Any] | None]:
    path = folder / _FILE
    if path.exists():
        return path, read_json(path)
    path = folder / _JOINED
    values = read_json(path).get("image_processor") if path.exists() else None
    return path, values if isinstance(values, dict) else None


def _colours(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation of pixels in [0, 1]."""
    factor = values.get("rescale_factor", 1 / _RANGE) if values.get("do_rescale", True) else 1.0
    if not _is_number(factor) or factor <= 0:
        raise CheckpointError(f"{path}: rescale_factor is {factor!r}; expected a positive number")
    scale = _RANGE * factor
    scale = 1.0 if math.isclose(scale, 1.0, rel_tol=1e-6) else scale
    if not values.get("do_normalize", True):
        return {"mean": (0.0,), "std": (1 / scale,)}
    found = {}
    for name in ("mean", "std"):
        given = values.get(f"image_{name}")
        if given is None:
            continue
        numbers = given if isinstance(given, list) else [given]
        if not numbers or not all(map(_is_number, numbers)):
            raise CheckpointError(f"{path}: image_{name} is {given!r}; expected numbers, one for each channel")
        found[name] = tuple(float(number) / scale for number in numbers)
    return found


def _interpolation(path: Path, kind: str, values: Mapping[str, Any]) -> str:
    given = values.get("resample")
    if given is None:
        return "bilinear" if kind in _BILINEAR else "bicubic"
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(_RESAMPLE):
        return _RESAMPLE[given]
    if isinstance(given, str) and given.lower() in _RESAMPLE:
        return given.lower()
    names = ", ".join(f"{i} ({name})" for i, name in enumerate(_RESAMPLE))
    raise CheckpointError(f"{path}: resample is {given!r}; expected {names}")


def _geometry(
    path: Path, kind: str, values: Mapping[str, Any], image: tuple[int, int]
) -> tuple[float, bool, tuple[int, int] | None, list[str]]:
    """The share of the resized image that is kept, whether images are squashed, their size in the end, and warnings."""
    crop = (
        _sides(path, "crop_size", values.get("crop_size"))
        if values.get("do_center_crop", "crop_size" in values)
        else None
    )
    if not values.get("do_resize", True):
        return 1.0, False, crop, [f"{path}: images are not resized there; here their shorter side is"]
    size = values.get("size")
    if isinstance(size, int) and not isinstance(size, bool):
        size = {"shortest_edge": size} if kind in _SHORTER else {"height": size, "width": size}
    if isinstance(size, dict) and set(size) == {"shortest_edge"} and _is_side(size["shortest_edge"]):
        edge = size["shortest_edge"]
        if crop is None:
            kept = f"{path}: images are not cropped there; here the centre of them is the input"
            return _share(min(image), edge) if min(image) <= edge else 1.0, False, None, [kept]
        said = [] if min(crop) <= edge else [f"{path}: images of {edge} pixels are padded to {crop[0]}x{crop[1]} there"]
        said += [] if crop[0] == crop[1] else [f"{path}: the crop of {crop[0]}x{crop[1]} is of another share here"]
        return _share(min(crop), edge) if min(crop) <= edge else 1.0, False, crop, said
    if isinstance(size, dict) and set(size) == {"height", "width"}:
        whole = _sides(path, "size", size)
        if crop is None:
            return 1.0, True, whole, []
        within = crop[0] <= whole[0] and crop[1] <= whole[1]
        said = [] if within else [f"{path}: images of {whole[0]}x{whole[1]} are padded to {crop[0]}x{crop[1]} there"]
        return _share(min(crop), min(whole)) if within else 1.0, True, crop, said
    return 1.0, False, None, [f"{path}: images are resized in a way that slimc has not; here their shorter side is"]


def _share(kept: int, whole: int) -> float:
    """The crop_pct by which `kept` pixels stay of `whole`; timm rounds kept / crop_pct down."""
    share = kept / whole
    return share if math.floor(kept / share) == whole else kept / (whole + 0.5)


def _sides(path: Path, name: str, value: object) -> tuple[int, int]:
    sides = [value, value] if isinstance(value, int) else value
    sides = [value.get("height"), value.get("width")] if isinstance(value, dict) else sides
    if isinstance(sides, list) and len(sides) == 2 and all(map(_is_side, sides)):
        return sides[0], sides[1]
    raise CheckpointError(f"{path}: {name} is {value!r}; expected height and width in pixels")


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
