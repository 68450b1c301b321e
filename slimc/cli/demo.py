"""The demo: a really searched and retrained ViT-Slim checkpoint on scikit-learn's handwritten digits, compiled and compared.

The checkpoint was trained by the released code on 1437 digits of 8x8 pixels, enlarged seven times; the other 360 are shipped
with it. Its budgets are 0.6 (attention), 0.6 (FFN) and 0.7 (patches).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

import slimc
from slimc.backends import ort
from slimc.backends.base import run_images
from slimc.compiler.export import ExportReport
from slimc.errors import OutputError
from slimc.evaluate.progress import Progress, silent
from slimc.files.output import replacing
from slimc.ir import FloatArray, IndexArray
from slimc.models.system import Variant

CHECKPOINT = "digits.pth"
VARIANTS: tuple[Variant, ...] = ("dense", "masked", "slim")
# What training did with the digits, which the checkpoint does not say.
IMAGES: Mapping[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0}
IMAGE_OPTIONS = "--mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --crop-pct 1"
_ROUNDS = 60


@dataclass(frozen=True, eq=False)
class DemoResult:
    """Per variant: the export's report, correct answers on the digits, median seconds of one image at one thread.

    `agreement` is the share of digits on which masked and slim give the same answer.
    """

    reports: dict[Variant, ExportReport]
    correct: dict[Variant, int]
    digits: int
    agreement: float
    latency: dict[Variant, float]


def digits() -> tuple[FloatArray, IndexArray]:
    """Images [360, 3, 56, 56] float32, normalised as in training, and their labels."""
    with as_file(files("slimc.cli") / "data" / "digits.npz") as path, np.load(path) as content:
        pixels, labels = content["pixels"], content["labels"]
    large = pixels.repeat(7, axis=1).repeat(7, axis=2).astype(np.float32) / np.float32(16)
    normalised = (large - np.float32(0.5)) / np.float32(0.5)
    return np.ascontiguousarray(normalised[:, None].repeat(3, axis=1)), labels.astype(np.int64)


def keep_checkpoint(directory: Path) -> list[Path]:
    """Copy the shipped checkpoint into `directory`, which is made; the file that it replaced, if there was one.

    Raises:
        OutputError: the directory cannot be made, or written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{directory}: cannot be made a directory: {error.strerror}") from None
    target = directory / CHECKPOINT
    replaced = [target] if target.exists() else []
    with as_file(files("slimc.cli") / "data" / CHECKPOINT) as source, replacing(target) as (temporary,):
        shutil.copyfile(source, temporary)
    return replaced


def run_demo(directory: Path, *, progress: Progress = silent) -> DemoResult:
    """Compile the shipped checkpoint three ways into `directory`, verify, and compare answers and latencies."""
    reports: dict[Variant, ExportReport] = {}
    with as_file(files("slimc.cli") / "data" / CHECKPOINT) as checkpoint:
        network = slimc.load(checkpoint, **IMAGES)
        for variant in VARIANTS:
            output = directory / f"digits-{variant}.onnx"
            reports[variant] = slimc.export(network, output, variant=variant, progress=progress)
    sessions = {variant: ort.load(report.onnx, threads=1) for variant, report in reports.items()}
    images, labels = digits()
    with progress("classifying the digits"):
        answers = {name: run_images(session, images, name).argmax(1) for name, session in sessions.items()}
    with progress("comparing latencies"):
        latency = _interleaved(sessions, images[:1])
    return DemoResult(
        reports=reports,
        correct={name: int((answer == labels).sum()) for name, answer in answers.items()},
        digits=len(labels),
        agreement=float((answers["masked"] == answers["slim"]).mean()),
        latency=latency,
    )


def _interleaved(sessions: dict[Variant, ort.OrtSession], image: FloatArray) -> dict[Variant, float]:
    """Median latency of every session, run in turns so that all see the same machine."""
    timers = {name: session.timer({"images": image}) for name, session in sessions.items()}
    samples: dict[Variant, list[float]] = {name: [] for name in sessions}
    for _ in range(_ROUNDS):
        for name, timer in timers.items():
            samples[name].append(timer().latency)
    return {name: float(np.median(values[_ROUNDS // 6 :])) for name, values in samples.items()}
