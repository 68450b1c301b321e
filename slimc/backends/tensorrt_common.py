"""What TensorRT and TensorRT-RTX have in common: parsing, building and running, over either library.

Both know strongly typed networks with the precision in the graph, `build_serialized_network`, `set_tensor_address` and
`execute_async_v3` (NVIDIA TensorRT API, 10.12 to 11, and TensorRT-RTX). Nothing that only one of them has is used here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from slimc.backends.base import Array, TensorSpec, Timer
from slimc.errors import ModelFileError

if TYPE_CHECKING:
    import tensorrt as trt

    from slimc.backends.cuda import Device

MIN_VERSION = (10, 12)


class Library(Protocol):
    """The names that slimc takes from a TensorRT module."""

    Builder: type[trt.Builder]
    BuilderFlag: type[trt.BuilderFlag]
    Logger: type[trt.Logger]
    ILogger: type[trt.ILogger]
    NetworkDefinitionCreationFlag: type[trt.NetworkDefinitionCreationFlag]
    OnnxParser: type[trt.OnnxParser]
    ProfilingVerbosity: type[trt.ProfilingVerbosity]
    Runtime: type[trt.Runtime]
    TensorIOMode: type[trt.TensorIOMode]
    LayerInformationFormat: type[trt.LayerInformationFormat]


@dataclass(frozen=True)
class Message:
    """A line of the library's log; `level` is 0 for internal errors, 1 errors, 2 warnings, then less."""

    level: int
    text: str


@dataclass(frozen=True, eq=False)
class Plan:
    """A built engine: its bytes, inputs and outputs, and what the builder said."""

    data: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    log: tuple[Message, ...]


def collecting_logger(library: Library, messages: list[Message]) -> trt.ILogger:
    """A logger that appends every message, verbose ones too, to `messages`."""

    class Collector(library.ILogger):  # type: ignore[name-defined, misc, unused-ignore]
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:  # noqa: ANN401 - an enum of the library at hand
            messages.append(Message(int(severity), text))

    return Collector()


def build(
    library: Library, path: Path, source: Path, configure: Callable[[trt.IBuilderConfig], None] | None = None
) -> Plan:
    """Build the ONNX model at `path`; `configure` sets what only one of the libraries knows.

    Errors name `source`: the file that the user gave.

    Raises:
        ModelFileError: the model does not parse or does not build; the message is the library's own.
    """
    messages: list[Message] = []
    builder = library.Builder(collecting_logger(library, messages))
    # Computed, for its value differs from version to version.
    strongly_typed = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    _parse(library, network, path, source, messages)
    config = builder.create_builder_config()
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    config.max_aux_streams = 0
    # On by default, it rounds the operands of float32 products to 10 bits: float32 would be no more exact than float16.
    config.clear_flag(library.BuilderFlag.TF32)
    if configure is not None:
        configure(config)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise ModelFileError(f"{source}: {library_name(library)} cannot build it: {_errors(messages)}")
    _refuse_ignored_inputs(library, path, source, messages)
    return Plan(
        data=bytes(data),
        inputs=tuple(_network_spec(network.get_input(i)) for i in range(network.num_inputs)),
        outputs=tuple(_network_spec(network.get_output(i)) for i in range(network.num_outputs)),
        log=tuple(messages),
    )


def _parse(
    library: Library, network: trt.INetworkDefinition, path: Path, source: Path, messages: list[Message]
) -> None:
    parser = library.OnnxParser(network, collecting_logger(library, messages))
    if parser.parse_from_file(str(path)):
        return
    errors = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)] or [_errors(messages)]
    raise ModelFileError(f"{source}: {library_name(library)} cannot parse it: {_one_line(errors[0])}")


def _refuse_ignored_inputs(library: Library, path: Path, source: Path, messages: Sequence[Message]) -> None:
    """An input that the builder only warns about is a part of the model that would silently not be computed."""
    ignored = [found[1] for m in messages if m.level <= 2 and (found := re.match(r"Unused Input: (\S+)", m.text))]
    if not ignored:
        return
    import onnx

    nodes = onnx.load(str(path), load_external_data=False).graph.node
    readers = [f"node {node.name} ({node.op_type})" for node in nodes if ignored[0] in node.input]
    where = f"of {', '.join(readers)}" if readers else "which no node reads"
    raise ModelFileError(f"{source}: {library_name(library)} ignores the input {ignored[0]} {where}")


def _parser_error(error: trt.ParserError) -> str:
    node = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() or error.node_operator() else ""
    return f"{node}{error.desc()}"


def _errors(messages: Sequence[Message]) -> str:
    """The library's errors in one line, without those that only say that this machine has no GPU."""
    errors = [m.text for m in messages if m.level <= 1 and "cudaError 35" not in m.text]
    return _one_line(errors[0]) if errors else "it gave no reason"


def _one_line(text: str) -> str:
    """`text` without line breaks and the library's source positions."""
    plain = re.sub(r" In \w+ at /\S+", "", " ".join(text.split()))
    return plain if len(plain) <= 600 else plain[:600] + "..."


def library_name(library: Library) -> str:
    """What NVIDIA calls `library`."""
    return "TensorRT-RTX" if "rtx" in getattr(library, "__name__", "") else "TensorRT"


def library_version(library: Library) -> str:
    """The version of `library`."""
    return str(getattr(library, "__version__", "of an unknown version"))


def _network_spec(tensor: trt.ITensor) -> TensorSpec:
    return TensorSpec(tensor.name, _sizes(tensor.shape), dtype_name(tensor.dtype))


def dtype_name(dtype: trt.DataType) -> str:
    """The NumPy name of a TensorRT type."""
    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "BOOL": "bool"}
    return names.get(str(dtype.name), str(dtype.name).lower())


@dataclass(frozen=True, eq=False)
class EngineSession:
    """A deserialised engine on a GPU, with device memory for its inputs and outputs."""

    backend: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: Device
    context: trt.IExecutionContext
    engine: trt.ICudaEngine

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Copy the inputs in, run once, copy the outputs out."""
        for spec in self.inputs:
            self.device.upload(spec.name, feeds[spec.name])
        self._enqueue()
        return {spec.name: self.device.download(spec.name, np.dtype(spec.dtype), spec.shape) for spec in self.outputs}

    def timer(self, feeds: Mapping[str, Array]) -> Timer:
        """GPU time of one inference by CUDA events, from a CUDA graph; transfers are excluded."""
        for spec in self.inputs:
            self.device.upload(spec.name, feeds[spec.name])
        return self.device.timer(self._enqueue)

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self.device.stream):
            raise ModelFileError("the engine does not run: TensorRT refused to enqueue it")


def load(library: Library, path: Path, data: bytes, device: Device) -> EngineSession:
    """Deserialise the engine `data` of the file `path` on `device`.

    Raises:
        ModelFileError: the library refuses it; the message is the library's own.
    """
    messages: list[Message] = []
    runtime = library.Runtime(collecting_logger(library, messages))
    engine = runtime.deserialize_cuda_engine(data)
    context = None if engine is None else engine.create_execution_context()
    if engine is None or context is None:
        raise ModelFileError(
            f"{path}: {library_name(library)} {library_version(library)} cannot load it: {_errors(messages)}"
        )
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    specs = {name: _engine_spec(engine, name) for name in names}
    for name, spec in specs.items():
        context.set_tensor_address(name, device.allocate(name, spec))
    is_input = {name: engine.get_tensor_mode(name) == library.TensorIOMode.INPUT for name in names}
    return EngineSession(
        backend=f"{library_name(library).lower()} {library_version(library)} {device.name}",
        inputs=tuple(spec for name, spec in specs.items() if is_input[name]),
        outputs=tuple(spec for name, spec in specs.items() if not is_input[name]),
        device=device,
        context=context,
        engine=engine,
    )


def _engine_spec(engine: trt.ICudaEngine, name: str) -> TensorSpec:
    return TensorSpec(name, _sizes(engine.get_tensor_shape(name)), dtype_name(engine.get_tensor_dtype(name)))


def _sizes(shape: trt.Dims) -> tuple[int, ...]:
    return tuple(int(shape[i]) for i in range(len(shape)))
