"""Plain TensorRT, 10.12 and newer: builds on the GPU that the engine is for, and runs there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slimc.backends import cuda
from slimc.backends.fusion import Kernel, read_inspector
from slimc.backends.tensorrt_common import MIN_VERSION, EngineSession, Library, Plan, build, load
from slimc.errors import MissingError, OptionError

if TYPE_CHECKING:
    import tensorrt as trt

NAME = "tensorrt"
_INSTALL = "pip install 'slimc[gpu]'"


def library() -> Library:
    """The module tensorrt.

    Raises:
        MissingError: it is not installed, or is older than slimc needs.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise MissingError(f"tensorrt cannot be imported ({error}); {_INSTALL}") from None
    version = getattr(tensorrt, "__version__", None)  # type stubs alone import too, as an empty package
    if version is None:
        raise MissingError(f"tensorrt is not installed (only its type stubs are); {_INSTALL}")
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_VERSION:
        raise MissingError(f"tensorrt {version} is too old; {_INSTALL} (10.12 or newer)")
    found: Library = tensorrt
    return found


def build_plan(path: Path, targets: tuple[str, ...], source: Path) -> Plan:
    """Build the ONNX model at `path` on this machine's GPU, which is the only target there can be. Errors name `source`.

    Raises:
        MissingError: tensorrt or the GPU is missing.
        OptionError: a target is not this GPU.
        ModelFileError: the model does not build.
    """
    trt_library = library()
    here = this_target()
    if any(target != here for target in targets):
        raise OptionError(
            f"--target: TensorRT builds for the GPU it runs on, which is {here}, not for {', '.join(targets)}; "
            "--backend tensorrt-rtx builds for others"
        )
    return build(trt_library, path, source)


def this_target() -> str:
    """The target that this machine's GPU is, such as ``sm89``.

    Raises:
        MissingError: there is no GPU.
    """
    return cuda.open_device().target


def read_kernels(path: Path, plan: Plan) -> tuple[Kernel, ...]:
    """The kernels of a plan built from `path`: those that the engine inspector tells of, once it is loaded."""
    session = load_plan(path, plan.data, cuda.open_device())
    inspector: trt.EngineInspector = session.engine.create_engine_inspector()
    return read_inspector(str(inspector.get_engine_information(library().LayerInformationFormat.JSON)))


def load_plan(path: Path, data: bytes, device: cuda.Device) -> EngineSession:
    """Load an engine onto `device`.

    Raises:
        MissingError: tensorrt is missing.
        ModelFileError: TensorRT refuses the engine.
    """
    return load(library(), path, data, device)
