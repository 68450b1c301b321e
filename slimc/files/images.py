"""Inputs of networks: seeded noise, and images from a folder, which are read when they are wanted and not held.

Images are resized and cropped as timm's evaluation does it (`slimc.ir.preprocessing`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slimc.errors import OptionError
from slimc.files.picture import check_picture, read_picture
from slimc.ir import FloatArray, IndexArray
from slimc.ir.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

# Those of torchvision's folders.
SUFFIXES = (".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Pictures that would be resized to this many times the pixels of an input, or more, are cropped first.
_LARGE = 16
# More damaged files than these are counted and not named.
_NAMED = 100


def seeded_images(count: int, image: tuple[int, int], seed: int, channels: int = 3) -> FloatArray:
    """Standard normal inputs [count, channels, height, width] float32, the same for the same seed."""
    return np.random.default_rng(seed).standard_normal((count, channels, *image), np.float32)


def image_files(directory: Path, option: str = "--data") -> list[Path]:
    """The images below `directory`, sorted by path; links are followed.

    Raises:
        OptionError: it is no directory, cannot be read, or holds no image; the message names `option`.
    """
    if not directory.is_dir():
        raise OptionError(f"{option}: {directory} is not a directory; expected a folder of images")
    try:
        files = sorted(_below(directory, ()))
    except OSError as error:
        raise OptionError(f"{option}: {error.filename} cannot be read: {error.strerror}") from None
    if not files:
        raise OptionError(f"{option}: {directory} holds no image; expected {', '.join(SUFFIXES)}")
    return files


def _below(directory: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Images below `directory`; a link back to a directory that it lies in, one of `above`, is not followed."""
    state = directory.stat()
    here = (state.st_dev, state.st_ino)
    if here in above:
        return
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _below(Path(entry.path), (*above, here))
            elif Path(entry.name).suffix.lower() in SUFFIXES and (entry.is_file() or entry.is_symlink()):
                yield Path(entry.path)


def check_images(
    files: Sequence[Path], advance: Callable[[int, int], None] | None = None, option: str = "--data"
) -> None:
    """Find out before any work whether all of `files` can be read.

    Raises:
        OptionError: some cannot; the message names all of them.
    """
    wrong: list[str] = []
    for done, path in enumerate(files, 1):
        try:
            check_picture(path)
        except OptionError as error:
            wrong.append(str(error))
        if advance is not None:
            advance(done, len(files))
    if wrong:
        more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        count = f"{len(wrong)} of {len(files)} images cannot be used: " if len(files) > 1 else ""
        raise OptionError(f"{option}: {count}{'; '.join(wrong[:_NAMED])}{more}")


def readable_images(directory: Path, option: str = "--data") -> list[Path]:
    """`image_files`, all of which can be read.

    Raises:
        OptionError: see `image_files` and `check_images`.
    """
    files = image_files(directory, option)
    check_images(files, option=option)
    return files


def load_images(
    files: Sequence[Path],
    image: tuple[int, int],
    preprocessing: Preprocessing,
    option: str = "--data",
    channels: int | None = None,
) -> FloatArray:
    """Images as inputs [n, channels, height, width] float32: resized, centre-cropped, normalised.

    There are as many `channels` as means, where they are not given.

    Raises:
        OptionError: a file is not a readable image, or there are neither 1 nor 3 channels; `option` is what named it.
    """
    channels = len(preprocessing.mean) if channels is None else channels
    loaded = np.empty((len(files), channels, *image), np.float32)
    mean, std = (np.array(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    for i, path in enumerate(files):
        try:
            picture = read_picture(path, channels)
        except OptionError as error:
            raise OptionError(f"{option}: {error}") from None
        values = np.asarray(fitted(picture, image, preprocessing), np.float32).reshape(*image, channels)
        loaded[i] = ((values / np.float32(255) - mean) / std).transpose(2, 0, 1)
    return loaded


def fitted(picture: Image.Image, image: tuple[int, int], preprocessing: Preprocessing) -> Image.Image:
    """`picture` in the size `image`, as timm's evaluation makes it."""
    from PIL import Image

    height, width = image
    rows, columns = _resized((picture.height, picture.width), image, preprocessing.crop_pct)
    # As torchvision rounds them.
    top, left = round((rows - height) / 2), round((columns - width) / 2)
    resample = Image.Resampling[preprocessing.interpolation.upper()]
    if rows * columns < _LARGE * height * width:
        resized = picture if picture.size == (columns, rows) else picture.resize((columns, rows), resample)
        return resized.crop((left, top, left + width, top + height))
    across, down = picture.width / columns, picture.height / rows
    right, bottom = min((left + width) * across, picture.width), min((top + height) * down, picture.height)
    return picture.resize((width, height), resample, (left * across, top * down, right, bottom))


def _resized(size: tuple[int, int], image: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """Height and width that a picture of `size` is resized to, before the crop."""
    wanted = math.floor(image[0] / crop_pct), math.floor(image[1] / crop_pct)
    if wanted[0] == wanted[1]:  # torchvision's Resize, which rounds down
        short, long = sorted(size)
        longer = int(wanted[0] * long / short)
        return (wanted[0], longer) if size[0] <= size[1] else (longer, wanted[0])
    ratio = min(size[0] / wanted[0], size[1] / wanted[1])  # timm's ResizeKeepRatio, which rounds
    return round(size[0] / ratio), round(size[1] / ratio)


def pixels(images: FloatArray, preprocessing: Preprocessing) -> FloatArray:
    """Inputs [n, channels, height, width] as pictures [n, height, width, 3] in [0, 1]: undoes the normalisation."""
    mean, std = (np.array(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    shown = np.clip(images.transpose(0, 2, 3, 1) * std + mean, 0.0, 1.0)
    return np.asarray(shown.repeat(3, axis=3) if shown.shape[3] == 1 else shown)


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Inputs of a network that read like an array [n, channels, height, width]: `held` ones, then those of `files`.

    What is taken out of it is read then, and not kept: memory does not grow with the number of files.
    """

    held: FloatArray
    files: tuple[Path, ...]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.held) + len(self.files)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return (len(self), *self.held.shape[1:])

    @property
    def ndim(self) -> int:
        """As of an array."""
        return self.held.ndim

    def __getitem__(self, rows: slice | IndexArray) -> FloatArray:
        """Inputs by a slice or by numbers, in that order."""
        chosen = np.arange(len(self))[rows]
        first, (channels, height, width) = len(self.held), self.held.shape[1:]
        inputs = np.empty((len(chosen), channels, height, width), np.float32)
        held = chosen < first
        inputs[held] = self.held[chosen[held]]
        files = [self.files[row - first] for row in chosen[~held]]
        inputs[~held] = load_images(files, (height, width), self.preprocessing, channels=channels)
        return inputs

    def only(self, rows: IndexArray) -> StreamedImages:
        """The inputs with the numbers `rows`, which rise; nothing is read."""
        first = len(self.held)
        files = tuple(self.files[row - first] for row in rows[rows >= first])
        return StreamedImages(self.held[rows[rows < first]], files, self.preprocessing)


Images = FloatArray | StreamedImages
"""Inputs [n, channels, height, width], in memory or not; slices and arrays of numbers give what they name."""


def only(images: Images, rows: IndexArray) -> Images:
    """Those of `images` with the numbers `rows`, which rise; nothing is read."""
    return images.only(rows) if isinstance(images, StreamedImages) else images[rows]
