"""What the front ends share about images and patch grids."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slimc.errors import OptionError


def image_size(patches: int, patch: tuple[int, int], stored: object, given: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width in pixels of an image of `patches` patches.

    `given` (``--img-size``) decides, else `stored` (the training arguments' input size, a number or a pair) where it has
    that many patches, else a square grid.

    Raises:
        OptionError: `given` has another number of patches, or nothing tells the grid.
    """
    if given is not None:
        if (
            given[0] < 1
            or given[1] < 1
            or given[0] % patch[0]
            or given[1] % patch[1]
            or _patches(given, patch) != patches
        ):
            raise OptionError(
                f"--img-size: {given[0]} {given[1]} does not give the {patches} patches of "
                f"{patch[0]}x{patch[1]} pixels that pos_embed has"
            )
        return given
    size = _pair(stored)
    if size is not None and size[0] % patch[0] == 0 and size[1] % patch[1] == 0 and _patches(size, patch) == patches:
        return size
    side = math.isqrt(max(patches, 0))
    if side * side != patches or patches == 0:
        raise OptionError(
            f"--img-size: {patches} patches make no square grid; give the image's height and width in pixels"
        )
    return side * patch[0], side * patch[1]


def _patches(size: tuple[int, int], patch: tuple[int, int]) -> int:
    return (size[0] // patch[0]) * (size[1] // patch[1])


def _pair(stored: object) -> tuple[int, int] | None:
    if isinstance(stored, int) and not isinstance(stored, bool) and stored > 0:
        return stored, stored
    if isinstance(stored, Sequence) and len(stored) in (2, 3) and all(isinstance(n, int) and n > 0 for n in stored):
        return stored[-2], stored[-1]
    return None
