"""One image file as a picture of 8 bits a channel; what would not look as it should is refused by name.

Like torchvision's loader: colours of transparent pixels stay, CMYK and palettes become RGB. Unlike it: pictures of 16 bits
and of floating point keep their range, and a camera's rotation (EXIF) is applied, as viewers do.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slimc.errors import OptionError

if TYPE_CHECKING:
    from PIL import Image

_MODES = {1: "L", 3: "RGB"}
# Grey of more than 8 bits a pixel: 16, or 32 as integers (which is also how Pillow 10 gives 16) or floating point.
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
# Tags of TIFF files: bits of a sample, and whether 0 is white or black.
_BITS, _PHOTOMETRIC = 258, 262
_WHITE_IS_ZERO = 0


def read_picture(path: Path, channels: int = 3) -> Image.Image:
    """The image at `path` as RGB, or as grey for one channel, turned as its EXIF says.

    Raises:
        OptionError: it is damaged, has more pixels than Pillow's limit, or values of a range that nobody can know; or
            there are neither 1 nor 3 channels.
    """
    if channels not in _MODES:
        raise OptionError(f"{path} cannot be given to a network of {channels} channels; expected 1 or 3")
    with _opened(path) as opened:
        opened.load()
        depth = _depth(opened, path) if opened.mode in _DEEP else None
        shown = _upright(opened)
        if depth is not None:
            shown = _shallow(shown, depth)
        # Pillow drops alpha that is multiplied in already only by way of plain alpha, and warns of some palettes.
        between = {"RGBa": "RGBA", "La": "LA", "P": "RGBA" if "transparency" in shown.info else "P"}.get(shown.mode)
        if between is not None and between != shown.mode:
            shown = shown.convert(between)
        return shown.convert(_MODES[channels])


def check_picture(path: Path) -> None:
    """Find out whether the image at `path` can be read, at less cost than reading it where the format allows.

    Raises:
        OptionError: see `read_picture`.
    """
    with _opened(path) as opened:
        if opened.format == "PNG":
            opened.verify()  # every chunk against its checksum
            return
        if opened.format == "JPEG":
            opened.draft(opened.mode, (1, 1))  # all of the file, decoded to an eighth of the size
            opened.load()
            return
    read_picture(path)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image at `path`, open; whatever goes wrong in the body is the file's fault."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as opened:
                yield opened
        except OptionError:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise OptionError(
                f"{path} has more pixels than {Image.MAX_IMAGE_PIXELS:,}: a decompression bomb? Make it smaller"
            ) from None
        except Exception as error:  # the formats' readers raise nearly everything
            raise OptionError(f"{path} is not a readable image ({_reason(error)})") from None


@dataclass(frozen=True)
class _Depth:
    """What deep grey values mean: the one that is white, and whether that is black instead."""

    white: float
    inverted: bool


def _depth(picture: Image.Image, path: Path) -> _Depth:
    """What the values of a deep grey picture mean."""
    inverted = _tag(picture, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO
    if picture.mode == "F":
        values = np.asarray(picture)
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise OptionError(
                f"{path} has floating point values from {low:g} to {high:g}, whose white is unknown; expected 0 to 1"
            )
        return _Depth(1.0, inverted)
    if picture.mode == "I" and picture.format not in ("PNG", "PPM"):
        raise OptionError(f"{path} has integers of 32 bits, whose white is unknown; expected 8 or 16 bits")
    return _Depth(float(2 ** _tag(picture, _BITS, 16) - 1), inverted)


def _shallow(picture: Image.Image, depth: _Depth) -> Image.Image:
    """A grey picture of more than 8 bits in 8."""
    from PIL import Image

    share = np.clip(np.asarray(picture).astype(np.float32) / np.float32(depth.white), 0, 1)
    return Image.fromarray(np.rint((1 - share if depth.inverted else share) * 255).astype(np.uint8))


def _upright(picture: Image.Image) -> Image.Image:
    """`picture` turned as its EXIF says; as it is where that cannot be read."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(picture) or picture
    except Exception:  # as a viewer shows it
        return picture


def _tag(picture: Any, tag: int, default: int) -> int:  # noqa: ANN401 - only pictures of TIFF have tags
    """A number that a TIFF file says about its pixels; `default` for other formats."""
    value = picture.tag_v2.get(tag, default) if picture.format == "TIFF" else default
    return int(value[0] if isinstance(value, tuple) else value)


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "of no format that Pillow knows, or damaged at its beginning"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
