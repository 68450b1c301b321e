"""ONNX Runtime: the CPU by default, a GPU through its CUDA or TensorRT execution provider."""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from slimc.backends import cores
from slimc.backends.base import Array, TensorSpec, Timer, Timing
from slimc.errors import MissingError, ModelFileError
from slimc.files.output import scratch

Provider = Literal["cpu", "cuda", "tensorrt"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
# float32 is to mean float32: by default CUDA rounds the operands of products to 10 bits.
_OPTIONS: dict[str, dict[str, str]] = {"cuda": {"use_tf32": "0"}}
# The first version that reads an opset: tried by `python -m benchmarks.versions`, and ONNX Runtime's own table for those
# that slimc does not emit by itself. The Attention operator of 23 is in 1.23.0, but wrong where queries are cut into parts.
_FIRST = {17: "1.12", 18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18", 22: "1.20", 23: "1.23.1"}
_POSITION = r"/\S*\.(?:cc|h|cpp):\d+ \S.*?\) (?=[A-Z])"  # a source file and the signature of a function
_DTYPES = {"float": "float32", "double": "float64"}


@dataclass(frozen=True, eq=False)
class OrtSession:
    """An ONNX model in ONNX Runtime."""

    backend: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    provider: Provider
    _session: Any

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once on host arrays."""
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    def timer(self, feeds: Mapping[str, Array]) -> Timer:
        """Wall-clock time of one run; inputs and outputs stay on the device."""
        import onnxruntime

        device = "cpu" if self.provider == "cpu" else "cuda"
        binding = self._session.io_binding()
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0) for name, array in feeds.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for spec in self.outputs:
            binding.bind_output(spec.name, device, 0)

        held = (dict(feeds), values)  # the binding refers to their memory and does not keep it

        def once() -> Timing:
            assert held
            start = time.perf_counter()
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return Timing(time.perf_counter() - start)

        return once


def is_installed() -> bool:
    """Whether ONNX Runtime is on this machine."""
    return importlib.util.find_spec("onnxruntime") is not None


def load(
    path: Path,
    *,
    provider: Provider = "cpu",
    threads: int | None = None,
    pinned: bool = False,
    rounded: bool = False,
    fused: bool = True,
) -> OrtSession:
    """Load the ONNX model at `path`.

    Args:
        path: the model; external data lie beside it.
        provider: what runs it.
        threads: threads inside an operator; None leaves the choice to ONNX Runtime.
        pinned: for measuring several sessions in one process: threads that wait for work sleep, and workers keep to
            the cores behind the first that this thread may use, one each.
        rounded: on the CPU, for judging: round every result that the model stores in half precision to that, which
            ONNX Runtime skips in float16 (`slimc.emit.rounding`). Slower, so not for measuring.
        fused: let ONNX Runtime fuse operators. Its fusion of a tanh-GELU (seen in 1.32) removes values that others read.

    Raises:
        MissingError: onnxruntime or the provider is not on this machine.
        ModelFileError: the file is no model that ONNX Runtime can load.
    """
    onnxruntime = _library(provider)
    if not path.is_file():
        raise ModelFileError(f"{path}: no such ONNX model")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if threads is not None:
        options.intra_op_num_threads = threads
    if pinned:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        workers = cores.usable()[1 : threads or 1]
        if workers and len(workers) + 1 == threads:  # ONNX Runtime counts cores from 1
            numbers = ";".join(str(core + 1) for core in workers)
            options.add_session_config_entry("session.intra_op_thread_affinities", numbers)
    providers = [(_PROVIDERS[name], _OPTIONS.get(name, {})) for name in _chain(provider)]
    rounded = rounded and provider == "cpu"
    try:
        open_session = _rounding_session if rounded else _session
        session = open_session(onnxruntime, path, options, providers)
    except Exception as error:  # its exceptions share no base below Exception
        raise ModelFileError(f"{path}: {too_old(path, onnxruntime.__version__) or refusal(error)}") from None
    if _PROVIDERS[provider] not in session.get_providers():
        raise MissingError(
            f"onnxruntime: {_PROVIDERS[provider]} is there but does not start; is there a GPU and its driver?"
        )
    return OrtSession(
        backend=f"onnxruntime {onnxruntime.__version__} {provider}{', half precision rounded' if rounded else ''}",
        inputs=tuple(_spec(path, node) for node in session.get_inputs()),
        outputs=tuple(_spec(path, node) for node in session.get_outputs()),
        provider=provider,
        _session=session,
    )


def _session(onnxruntime: Any, path: Path, options: Any, providers: list[tuple[str, dict[str, str]]]) -> Any:  # noqa: ANN401
    """An inference session. Where there are no bfloat16 kernels (the CPU has none), arithmetic is in float32."""
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:
        if type(error).__name__ != "NotImplemented":
            raise
        return _rounding_session(onnxruntime, path, options, providers)


def _rounding_session(onnxruntime: Any, path: Path, options: Any, providers: list[tuple[str, dict[str, str]]]) -> Any:  # noqa: ANN401
    """A session that computes in float32 and rounds what the model stores in half precision."""
    import onnx_ir

    from slimc.emit.file import save
    from slimc.emit.rounding import round_results

    model = onnx_ir.load(path)
    round_results(model)
    with scratch() as directory:
        file = directory / "rounding.onnx"
        save(model, file)
        return onnxruntime.InferenceSession(file, options, providers=providers)


def _chain(provider: Provider) -> tuple[Provider, ...]:
    """Providers in falling order of preference: TensorRT leaves to CUDA what it cannot run, CUDA to the CPU."""
    order: tuple[Provider, ...] = ("tensorrt", "cuda", "cpu")
    return order[order.index(provider) :]


def _library(provider: Provider) -> Any:  # noqa: ANN401 - a module without types
    extra = "cpu" if provider == "cpu" else "gpu"
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingError(f"onnxruntime cannot be imported ({error}); pip install 'slimc[{extra}]'") from None
    if _PROVIDERS[provider] not in onnxruntime.get_available_providers():
        raise MissingError(f"this onnxruntime has no {_PROVIDERS[provider]}; pip install 'slimc[{extra}]'")
    return onnxruntime


def _spec(path: Path, node: Any) -> TensorSpec:  # noqa: ANN401 - onnxruntime has no types
    if not all(isinstance(size, int) for size in node.shape):
        raise ModelFileError(
            f"{path}: {node.name} has the dynamic shape {node.shape}; expected a model that slimc wrote"
        )
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(node.name, tuple(node.shape), _numpy_name(_DTYPES.get(kind, kind)))


def _numpy_name(kind: str) -> str:
    return kind if kind == "bfloat16" else np.dtype(kind).name


def too_old(path: Path, version: str) -> str:
    """Why ONNX Runtime `version` does not serve the model at `path`, and what does; empty where its age is no reason."""
    import onnx

    from slimc.emit.model import OPSETS

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # no ONNX model: then that is the reason, and not the runtime
        return ""
    opset = max((used.version for used in model.opset_import if not used.domain), default=0)
    needed = _FIRST.get(opset)
    if needed is None or _numbers(version) >= _numbers(needed):
        return ""
    older = "" if opset <= OPSETS[0] else f", or export it with --opset {OPSETS[0]}"
    return (
        f"opset {opset} needs ONNX Runtime {needed} or newer, and here is {version}: pip install -U onnxruntime{older}"
    )


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, without what marks a build."""
    return tuple(int(part) for part in version.split("+", maxsplit=1)[0].split(".") if part.isdigit())


def refusal(error: Exception) -> str:
    """ONNX Runtime's own words, without its source positions."""
    return f"ONNX Runtime cannot load it: {' '.join(re.sub(_POSITION, '', str(error)).split())[:300]}"
