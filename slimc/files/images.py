"""Inputs to compare networks on: seeded noise, and images from a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slimc.errors import OptionError
from slimc.ir import FloatArray
from slimc.ir.preprocessing import Preprocessing

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
# The share of the resized image that the centre crop keeps: timm's and DeiT's evaluation at 224 pixels.
_CROP = 0.875


def seeded_images(count: int, image: tuple[int, int], seed: int, channels: int = 3) -> FloatArray:
    """Standard normal inputs [count, channels, height, width] float32, the same for the same seed."""
    return np.random.default_rng(seed).standard_normal((count, channels, *image), np.float32)


def image_files(directory: Path) -> list[Path]:
    """The images below `directory`, sorted by path.

    Raises:
        OptionError: it is no directory, or holds no image.
    """
    if not directory.is_dir():
        raise OptionError(f"--data: {directory} is not a directory; expected a folder of images")
    files = sorted(path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise OptionError(f"--data: {directory} holds no image; expected {', '.join(SUFFIXES)}")
    return files


def load_images(
    files: list[Path], image: tuple[int, int], preprocessing: Preprocessing, option: str = "--data"
) -> FloatArray:
    """Images as inputs [n, 3, height, width] float32: resized (bicubic), centre-cropped, normalised.

    An image that has the network's size already is taken as it is.

    Raises:
        OptionError: a file is not a readable image; `option` is what named it.
    """
    return np.stack([_load(path, image, preprocessing, option) for path in files])


def pixels(images: FloatArray, preprocessing: Preprocessing) -> FloatArray:
    """Inputs [n, 3, height, width] as pictures [n, height, width, 3] in [0, 1]: undoes the normalisation."""
    mean, std = (np.array(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    return np.asarray(np.clip(images.transpose(0, 2, 3, 1) * std + mean, 0.0, 1.0))


def _load(path: Path, image: tuple[int, int], preprocessing: Preprocessing, option: str) -> FloatArray:
    from PIL import Image

    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OptionError(f"{option}: {path} is not a readable image ({type(error).__name__})") from None
    height, width = image
    if picture.size != (width, height):
        scale = max(height / picture.height, width / picture.width) / _CROP
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    pixels = np.asarray(picture, np.float32) / np.float32(255)
    normalised = (pixels - np.array(preprocessing.mean, np.float32)) / np.array(preprocessing.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), np.float32)
