"""The protocol behind which every back end stands, and what can be said of all of them.

A session is a loaded model or engine with static shapes. It runs on named NumPy arrays and it hands out timers, so that
a benchmark can interleave several sessions and each back end measures in its own best way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slimc.errors import ModelFileError
from slimc.files.images import Images
from slimc.files.outputs import is_output
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
        found = describe_specs(session.inputs)
        raise ModelFileError(f"{source}: expected one input of images [B, 3, height, width], found {found}")
    return session.inputs[0]


def logits_output(session: Session, source: str) -> TensorSpec:
    """The output ``logits`` [B, classes], or the only output of a model that slimc did not write.

    Raises:
        ModelFileError: there is no such output; the message names `source`.
    """
    others = [spec for spec in session.outputs if not is_output(spec.name)]
    chosen = [spec for spec in session.outputs if spec.name == "logits"] or others
    if len(chosen) != 1 or len(chosen[0].shape) != 2:
        raise ModelFileError(
            f"{source}: expected an output logits [B, classes], found {describe_specs(session.outputs)}"
        )
    return chosen[0]


def features_output(session: Session, source: str) -> TensorSpec:
    """The output ``features`` [B, F].

    Raises:
        ModelFileError: there is no such output; the message names `source`.
    """
    for spec in session.outputs:
        if spec.name == "features" and len(spec.shape) == 2:
            return spec
    raise ModelFileError(
        f"{source}: has no features, but {describe_specs(session.outputs)}; slimc export --outputs features"
    )


def describe_specs(specs: Iterable[TensorSpec]) -> str:
    """Names and shapes, for messages."""
    return ", ".join(f"{spec.name} {list(spec.shape)}" for spec in specs) or "none"


def run_images(session: Session, images: Images, source: str) -> FloatArray:
    """Logits [n, classes] of `images` [n, 3, height, width]; see `run_outputs`.

    Raises:
        ModelFileError: the model takes no images of this shape, or has no logits.
    """
    logits = logits_output(session, source).name
    return run_outputs(session, images, source, (logits,))[logits]


def run_outputs(
    session: Session, images: Images, source: str, names: Sequence[str] | None = None
) -> dict[str, FloatArray]:
    """Outputs [n, ...] of `images` [n, 3, height, width] by name, in batches of the model's own size.

    The last batch is filled with copies of its last image. Without `names` all outputs are given.

    Raises:
        ModelFileError: the model takes no images of this shape, or has no such output.
    """
    image, specs = image_input(session, source), {spec.name: spec for spec in session.outputs}
    names = tuple(specs) if names is None else names
    for name in names:
        if name not in specs:
            raise ModelFileError(f"{source}: has no output {name}, but {describe_specs(session.outputs)}")
    if images.ndim != 4 or images.shape[1:] != image.shape[1:]:
        raise ModelFileError(
            f"{source}: takes images {list(image.shape[1:])}, but was given {list(images.shape[1:])}: "
            "the images belong to another model"
        )
    size = image.shape[0]
    results = {name: np.empty((len(images), *specs[name].shape[1:]), np.float32) for name in names}
    for start in range(0, len(images), size):
        batch = images[start : start + size].astype(image.dtype, copy=False)
        missing = size - len(batch)
        filled = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch
        found = session.run({image.name: np.ascontiguousarray(filled)})
        for name, values in results.items():
            values[start : start + len(batch)] = found[name][: len(batch)]
    return results
