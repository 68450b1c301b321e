"""Models on a CPU, loaded so that several of them can be timed in turns within one process.

Worker threads sleep while they wait, for those of many models share the cores, and each keeps to one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from slimc.backends import cores, openvino, ort
from slimc.backends.base import Session, Timer, image_input

Backend = Literal["onnxruntime", "openvino"]


def load(path: Path, backend: Backend, threads: int) -> Session:
    """The ONNX model at `path`.

    Raises:
        MissingError: the back end is not installed.
        ModelFileError: the file is no model that it can load.
    """
    if backend == "openvino":
        return openvino.load(path, threads=threads)
    return ort.load(path, threads=threads, pinned=True)


def timer(session: Session) -> Timer:
    """Times one run on a fixed input."""
    spec = image_input(session, "a model to be timed")
    return session.timer({spec.name: np.random.default_rng(0).standard_normal(spec.shape, np.float32)})


@contextmanager
def running(backend: Backend, chosen: Sequence[int]) -> Iterator[None]:
    """Keep this thread where models that were loaded for the cores `chosen` want it while the body runs them."""
    # ONNX Runtime's workers have the other cores; OpenVINO moves its threads itself.
    with cores.kept_to(chosen[:1] if backend == "onnxruntime" else ()):
        yield
