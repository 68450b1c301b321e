"""TensorRT-RTX: builds ahead of time for GPUs that need not be there, and runs on the one that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slimc.backends import cuda
from slimc.backends.fusion import Kernel, read_log
from slimc.backends.tensorrt_common import EngineSession, Library, Plan, build, collecting_logger, load
from slimc.errors import MissingError, ModelFileError, OptionError

NAME = "tensorrt-rtx"
_INSTALL = "pip install 'slimc[rtx]'"


def library() -> Library:
    """The module tensorrt_rtx.

    Raises:
        MissingError: it is not installed.
    """
    return _module()  # type: ignore[no-any-return]


def _module() -> Any:  # noqa: ANN401 - a module without types, with more in it than TensorRT has
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise MissingError(f"tensorrt_rtx cannot be imported ({error}); {_INSTALL}") from None
    return tensorrt_rtx


def targets_known() -> tuple[str, ...]:
    """The targets that the installed version builds for."""
    names = _module().ComputeCapability.__members__
    return tuple(name.lower() for name in names if name.startswith("SM"))


def build_plan(path: Path, targets: tuple[str, ...], source: Path) -> Plan:
    """Build the ONNX model at `path` for `targets`; for none, one portable engine for SM80 and newer.

    Errors name `source`.

    Raises:
        MissingError: tensorrt_rtx is not installed.
        OptionError: the installed version does not know a target.
        ModelFileError: the model does not build.
    """
    module = _module()
    unknown = [target for target in targets if target not in targets_known()]
    if unknown:
        raise OptionError(
            f"--target: TensorRT-RTX {module.__version__} does not build for {unknown[0]}; "
            f"expected {', '.join(targets_known())}"
        )

    def configure(config: Any) -> None:  # noqa: ANN401 - the library's own config, which has more than TensorRT's
        if not targets:
            return
        config.num_compute_capabilities = len(targets)
        for i, target in enumerate(targets):
            config.set_compute_capability(module.ComputeCapability.__members__[target.upper()], i)

    return build(module, path, source, configure)


def read_kernels(_path: Path, plan: Plan) -> tuple[Kernel, ...]:
    """The kernels of a plan: those that the build log ends with."""
    return read_log(plan.log)


def check_plan(path: Path, data: bytes) -> None:
    """Tell a plan from garbage, which needs no GPU.

    Raises:
        ModelFileError: it is no plan of this version.
    """
    module = _module()
    runtime = module.Runtime(collecting_logger(module, []))
    validity, diagnostics = runtime.get_engine_validity(data)
    # Without a GPU every engine is invalid; then only what is no engine at all can be told.
    malformed = bool(int(diagnostics) & int(module.EngineInvalidityDiagnostics.MALFORMED_ENGINE))
    if malformed or (validity == module.EngineValidity.INVALID and cuda.gpu_missing() is None):
        raise ModelFileError(f"{path}: no engine that TensorRT-RTX {module.__version__} can load on this machine")


def load_plan(path: Path, data: bytes, device: cuda.Device) -> EngineSession:
    """Load an engine onto `device`.

    Raises:
        MissingError: tensorrt_rtx is missing.
        ModelFileError: TensorRT-RTX refuses the engine.
    """
    return load(library(), path, data, device)
