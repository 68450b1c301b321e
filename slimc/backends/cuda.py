"""What an engine needs of a GPU, through cuda-bindings: memory, a stream, events, a graph. No torch on the target."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slimc.backends.base import Array, TensorSpec, Timer, Timing
from slimc.errors import MissingError, ModelFileError

_INSTALL = "pip install cuda-bindings"


def gpu_missing() -> str | None:
    """Why no GPU can be used here; none where one can."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        return f"cuda-bindings cannot be imported ({error}); {_INSTALL}"
    status, count = runtime.cudaGetDeviceCount()
    if status.value != 0 or not count:
        return f"no NVIDIA GPU with a driver that CUDA can use ({status.name})"
    return None


def require_gpu() -> None:
    """Find out before any work whether engines can run here.

    Raises:
        MissingError: there is no GPU, or cuda-bindings is not installed.
    """
    missing = gpu_missing()
    if missing is not None:
        raise MissingError(f"running an engine needs a GPU: {missing}")


def open_device() -> Device:
    """The current GPU.

    Raises:
        MissingError: there is none, or cuda-bindings is not installed.
    """
    require_gpu()
    from cuda.bindings import runtime

    properties = _checked(runtime.cudaGetDeviceProperties(0))
    return Device(
        name=properties.name.split(b"\0")[0].decode(errors="replace"),
        capability=(int(properties.major), int(properties.minor)),
        stream=int(_checked(runtime.cudaStreamCreate())),
    )


@dataclass(frozen=True, eq=False)
class Device:
    """A GPU, one stream on it and named buffers. `capability` is (8, 9) for SM89."""

    name: str
    capability: tuple[int, int]
    stream: int
    _buffers: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The GPU as a target, such as ``sm89``."""
        return f"sm{self.capability[0]}{self.capability[1]}"

    def allocate(self, name: str, spec: TensorSpec) -> int:
        """Memory for `spec`: its address."""
        from cuda.bindings import runtime

        itemsize = 2 if spec.dtype == "bfloat16" else np.dtype(spec.dtype).itemsize
        size = int(np.prod(spec.shape)) * itemsize
        address = int(_checked(runtime.cudaMalloc(size)))
        self._buffers[name] = (address, size)
        return address

    def upload(self, name: str, array: Array) -> None:
        """Copy `array` into the buffer `name`.

        Raises:
            ModelFileError: the array has another size.
        """
        from cuda.bindings import runtime

        address, size = self._buffers[name]
        host = np.ascontiguousarray(array)
        if host.nbytes != size:
            raise ModelFileError(f"input {name}: {host.nbytes} bytes given, {size} expected")
        _checked(runtime.cudaMemcpy(address, host.ctypes.data, size, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice))

    def download(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """What the buffer `name` holds once the stream has come to rest."""
        from cuda.bindings import runtime

        _checked(runtime.cudaStreamSynchronize(self.stream))
        address, size = self._buffers[name]
        host = np.empty(shape, dtype)
        _checked(runtime.cudaMemcpy(host.ctypes.data, address, size, runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost))
        return host

    def timer(self, enqueue: Callable[[], None]) -> Timer:
        """Times `enqueue` as trtexec does: a CUDA graph launched between two events on the stream."""
        from cuda.bindings import runtime

        launch = self._captured(enqueue)
        start, end = (_checked(runtime.cudaEventCreate()) for _ in range(2))

        def once() -> Timing:
            _checked(runtime.cudaEventRecord(start, self.stream))
            before = time.perf_counter()
            launch()
            enqueued = time.perf_counter() - before
            _checked(runtime.cudaEventRecord(end, self.stream))
            _checked(runtime.cudaEventSynchronize(end))
            return Timing(_checked(runtime.cudaEventElapsedTime(start, end)) / 1e3, enqueued)

        return once

    def _captured(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """`enqueue` as one graph launch where it can be captured; it runs once before, for what happens at first only."""
        from cuda.bindings import runtime

        enqueue()
        _checked(runtime.cudaStreamSynchronize(self.stream))
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _checked(runtime.cudaStreamBeginCapture(self.stream, mode))
        with suppress(ModelFileError):
            enqueue()
        status, graph = runtime.cudaStreamEndCapture(self.stream)
        if status.value != 0:  # something in it asks the host, such as If: then it is launched as it is
            return enqueue
        executable = _checked(runtime.cudaGraphInstantiate(graph, 0))

        def launch() -> None:
            _checked(runtime.cudaGraphLaunch(executable, self.stream))

        return launch


def _checked(result: tuple[Any, ...]) -> Any:  # noqa: ANN401 - cuda-bindings has no types
    """The value in what a CUDA call returned.

    Raises:
        MissingError: the call failed; the message names the CUDA error.
    """
    status, *values = result
    if status.value != 0:
        raise MissingError(f"the GPU refused: {status.name}")
    return values[0] if values else None
