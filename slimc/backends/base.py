"""The protocol behind which every back end stands, and what can be said of all of them.

A session is a loaded model or engine with static shapes. It runs on named NumPy arrays and it hands out timers, so that
a benchmark can interleave several sessions and each back end measures in its own best way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slimc.errors import ModelFileError
from slimc.files.images import Images
from slimc.ir import FloatArray

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its name, its static shape and its NumPy dtype (``bfloat16`` where NumPy has none)."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Timing:
    """One inference, in seconds: how long it took, and for how long the host only enqueued work (none on a CPU)."""

    latency: float
    enqueue: float | None = None


Timer = Callable[[], Timing]


class Session(Protocol):
    """A model that is loaded and ready to run."""

    @property
    def backend(self) -> str:
        """Library, version and device, such as ``onnxruntime 1.23.0 cpu``."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` must be given."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` returns."""
        ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once: arrays by input name to arrays by output name."""
        ...

    def timer(self, feeds: Mapping[str, Array]) -> Timer:
        """A function that runs once on `feeds`, which stay where the device has them, and says how long that took."""
        ...


def image_input(session: Session, source: str) -> TensorSpec:
    """The image input [B, 3, height, width] of a model that slimc wrote.

    Raises:
        ModelFileError: the model has other inputs; the message names `source`.
    """
    if len(session.inputs) != 1 or len(session.inputs[0].shape) != 4:
        found = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in session.inputs) or "none"
        raise ModelFileError(f"{source}: expected one input of images [B, 3, height, width], found {found}")
    return session.inputs[0]


def logits_output(session: Session, source: str) -> TensorSpec:
    """The output ``logits`` [B, classes], or the only output.

    Raises:
        ModelFileError: there is no such output; the message names `source`.
    """
    chosen = [spec for spec in session.outputs if spec.name == "logits"] or list(session.outputs)
    if len(chosen) != 1 or len(chosen[0].shape) != 2:
        found = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in session.outputs) or "none"
        raise ModelFileError(f"{source}: expected an output logits [B, classes], found {found}")
    return chosen[0]


def run_images(session: Session, images: Images, source: str) -> FloatArray:
    """Logits [n, classes] of `images` [n, 3, height, width], in batches of the model's own size.

    The last batch is filled with copies of its last image.

    Raises:
        ModelFileError: the model takes no images of this shape.
    """
    image, logits = image_input(session, source), logits_output(session, source)
    if images.ndim != 4 or images.shape[1:] != image.shape[1:]:
        raise ModelFileError(
            f"{source}: takes images {list(image.shape[1:])}, but was given {list(images.shape[1:])}: "
            "the images belong to another model"
        )
    size, results = image.shape[0], []
    for start in range(0, len(images), size):
        batch = images[start : start + size].astype(image.dtype, copy=False)
        missing = size - len(batch)
        filled = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch
        results.append(session.run({image.name: np.ascontiguousarray(filled)})[logits.name][: len(batch)])
    if not results:
        return np.zeros((0, logits.shape[1]), np.float32)
    return np.concatenate(results).astype(np.float32)
