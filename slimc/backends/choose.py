"""From a file and the name of a back end to a session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slimc.errors import ModelFileError, OptionError

if TYPE_CHECKING:
    from slimc.backends.base import Session

BACKENDS = (
    "onnxruntime",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "openvino",
    "openvino-bf16",
    "tensorrt",
    "tensorrt-rtx",
)


def runs_on_cpu(path: Path, backend: str) -> bool:
    """Whether `backend` runs the file at `path`, or what a checkpoint there is compiled to, on a CPU."""
    return path.suffix != ".engine" and (backend in ("auto", "onnxruntime") or backend.startswith("openvino"))


def open_session(path: Path, backend: str = "auto", *, threads: int | None = None, rounded: bool = False) -> Session:
    """Load the ONNX model or engine at `path`; ``auto`` is ONNX Runtime's CPU, or the library the engine is of.

    With `rounded`, ONNX Runtime's CPU rounds what a model stores in half precision, as a device that has it does.

    Raises:
        MissingError: the back end, or a GPU it needs, is not on this machine.
        ModelFileError: the file cannot be loaded.
        OptionError: there is no such back end, it does not take this kind of file, or it takes no threads.
    """
    if backend not in ("auto", *BACKENDS):
        raise OptionError(f"--backend: {backend!r} is unknown; expected auto, {', '.join(BACKENDS)}")
    if threads is not None and threads < 1:
        raise OptionError(f"--threads: {threads} threads cannot run anything; expected at least 1")
    if threads is not None and not runs_on_cpu(path, backend):
        raise OptionError(f"--threads: are those of a CPU, and {path} does not run on one with --backend {backend}")
    if path.suffix == ".engine":
        return _open_engine(path, backend)
    if path.suffix != ".onnx":
        raise ModelFileError(f"{path}: expected a file that ends in .onnx or .engine")
    if backend in ("tensorrt", "tensorrt-rtx"):
        raise OptionError(f"--backend: {backend} runs engines; slimc build-engine {path} makes one")
    if backend.startswith("openvino"):
        from slimc.backends import openvino

        return openvino.load(path, precision="bf16" if backend.endswith("bf16") else "f32", threads=threads)
    from slimc.backends import ort

    providers: dict[str, ort.Provider] = {"onnxruntime-cuda": "cuda", "onnxruntime-tensorrt": "tensorrt"}
    return ort.load(path, provider=providers.get(backend, "cpu"), threads=threads, rounded=rounded)


def _open_engine(path: Path, backend: str) -> Session:
    from slimc.backends import cuda, tensorrt, tensorrt_rtx
    from slimc.backends.engine_file import read_engine
    from slimc.backends.tensorrt_common import library_version

    data, facts = read_engine(path)
    if backend not in ("auto", facts.backend):
        raise OptionError(f"--backend: {path} is an engine of {facts.backend}; {backend} cannot run it")
    module = tensorrt_rtx if facts.backend == tensorrt_rtx.NAME else tensorrt
    if facts.backend == tensorrt_rtx.NAME:
        tensorrt_rtx.check_plan(path, data)
    version = library_version(module.library())
    if version != facts.version:
        raise ModelFileError(f"{path}: built with {facts.backend} {facts.version}, here is {version}; build it again")
    device = cuda.open_device()
    if facts.targets and device.target not in facts.targets:
        raise ModelFileError(
            f"{path}: built for {', '.join(facts.targets)}, here is {device.target}; build it for that"
        )
    session: Session = module.load_plan(path, data, device)
    return session
