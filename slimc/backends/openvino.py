"""OpenVINO on the CPU, in float32 or with bfloat16 arithmetic."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from slimc.backends.base import Array, TensorSpec, Timer, Timing
from slimc.errors import MissingError, ModelFileError

_ATTENTION = (2026, 3)  # tried by `python -m benchmarks.versions`
_INSTALL = "pip install 'slimc[openvino]'"


@dataclass(frozen=True, eq=False)
class OpenvinoSession:
    """An ONNX model compiled by OpenVINO."""

    backend: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    _request: Any

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once on host arrays."""
        results = self._request.infer(dict(feeds))
        return {spec.name: np.array(results[spec.name]) for spec in self.outputs}

    def timer(self, feeds: Mapping[str, Array]) -> Timer:
        """Wall-clock time of one run; the inputs are set once."""
        import openvino

        for name, array in feeds.items():
            self._request.set_tensor(name, openvino.Tensor(array))

        def once() -> Timing:
            start = time.perf_counter()
            self._request.infer()
            return Timing(time.perf_counter() - start)

        return once


def load(path: Path, *, precision: Literal["f32", "bf16"] = "f32", threads: int | None = None) -> OpenvinoSession:
    """Compile the ONNX model at `path` for the CPU.

    Args:
        path: the model; external data lie beside it.
        precision: of the arithmetic. Said in any case, for OpenVINO takes bfloat16 by itself where the CPU has it.
        threads: threads of one inference; None leaves the choice to OpenVINO.

    Raises:
        MissingError: openvino is not installed.
        ModelFileError: the file is no model that OpenVINO can compile.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingError(f"openvino cannot be imported ({error}); {_INSTALL}") from None
    if not path.is_file():
        raise ModelFileError(f"{path}: no such ONNX model")
    refused = too_old(path, openvino.__version__)
    if refused:
        raise ModelFileError(f"{path}: {refused}")
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = openvino.Core().compile_model(path, "CPU", config)
        inputs, outputs = (tuple(_spec(port) for port in ports) for ports in (compiled.inputs, compiled.outputs))
    except RuntimeError as error:
        raise ModelFileError(f"{path}: OpenVINO cannot compile it: {_reason(error)}") from None
    version = openvino.__version__.split("-")[0]
    return OpenvinoSession(f"openvino {version} cpu {precision}", inputs, outputs, compiled.create_infer_request())


def too_old(path: Path, version: str) -> str:
    """Why OpenVINO `version` does not serve the model at `path`, and what does; empty where its age is no reason.

    ONNX's Attention operator (opset 23) is refused before 2026.1, and computed wrongly by 2026.1 and 2026.2.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # no ONNX model: then that is the reason, and not the version
        return ""
    here = version.split("-", maxsplit=1)[0]
    uses = any(node.op_type == "Attention" for node in model.graph.node)
    if not uses or tuple(int(part) for part in here.split(".")[:2]) >= _ATTENTION:
        return ""
    needed = ".".join(map(str, _ATTENTION))
    return (
        f"its Attention operators need OpenVINO {needed} or newer, and here is {here}, which refuses them or computes them "
        "wrongly: pip install -U openvino, or export the model with --opset 17"
    )


def _spec(port: Any) -> TensorSpec:  # noqa: ANN401 - openvino has no types
    return TensorSpec(port.get_any_name(), tuple(int(size) for size in port.shape), port.element_type.to_dtype().name)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
