"""The demo's digits as a folder of pictures."""

from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES = ("--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5", "--crop-pct", "1")
"""How the digits became inputs in training, which their checkpoint does not say."""


def write_digits(directory: Path, *, every: int = 1) -> Path:
    """Every so many of the 360 digits, 56x56 pixels of 8 bits, in a folder for each class."""
    with as_file(files("slimc.cli") / "data" / "digits.npz") as path, np.load(path) as content:
        pixels, labels = content["pixels"], content["labels"]
    for number in range(0, len(labels), every):
        folder = directory / str(labels[number])
        folder.mkdir(parents=True, exist_ok=True)
        large = pixels[number].astype(float).repeat(7, axis=0).repeat(7, axis=1)
        Image.fromarray(np.rint(large * (255 / 16)).astype(np.uint8)).save(folder / f"{number:03}.png")
    return directory
