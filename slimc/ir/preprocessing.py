"""How images become the network's input: timm's terms, and timm's meaning of them."""

from __future__ import annotations

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")
CROP_PCT = 0.875
"""timm's default, and what DeiT's evaluation does: 224 of 256 pixels."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, then (pixel / 255 - mean) / std, channel by channel.

    The shorter side is resized to floor(size / `crop_pct`) pixels by `interpolation`, and the centre of that is the input.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_pct: float = CROP_PCT
    interpolation: str = "bicubic"

    def describe(self) -> str:
        """One line for people."""
        mean, std = (" ".join(f"{value:.6g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std}, {self.crop_pct:.6g} of the {self.interpolation} resized image"
