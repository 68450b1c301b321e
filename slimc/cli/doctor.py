"""What this machine can compile, build, run and time, and what to install for the rest."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass

from slimc.backends.host import installed_version, processor
from slimc.errors import MissingError


@dataclass(frozen=True)
class Package:
    """A package: the names it is distributed under, what it is for, and the command that installs it."""

    names: tuple[str, ...]
    purpose: str
    install: str


@dataclass(frozen=True)
class Finding:
    """What was found out about one thing; `install` is empty where it works."""

    name: str
    found: str
    purpose: str
    install: str = ""

    @property
    def works(self) -> bool:
        """Whether nothing needs to be installed."""
        return not self.install


# What is looked for: whatever a command imports that is not among slimc's own requirements.
PACKAGES = (
    Package(("torch",), "compile checkpoints", "pip install 'slimc[compile]'"),
    Package(("safetensors",), "read .safetensors", "pip install 'slimc[compile]'"),
    Package(("onnxruntime", "onnxruntime-gpu"), "run, verify and time models", "pip install 'slimc[cpu]'"),
    Package(("openvino",), "run and time models on CPUs", "pip install 'slimc[openvino]'"),
    Package(
        ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
        "build engines without a GPU, run them with one",
        "pip install 'slimc[rtx]'",
    ),
    Package(("cuda-bindings",), "run engines", "pip install cuda-bindings"),
    Package(("matplotlib",), "--plot", "pip install 'slimc[plot]'"),
)


def examine() -> list[Finding]:
    """Everything slimc can use, in the order of its work."""
    return [
        Finding("Python", platform.python_version(), "everything"),
        Finding("CPU", processor(), "run and time models"),
        *(_package(package) for package in PACKAGES),
        _execution_providers(),
        _tensorrt(),
        _rtx_targets(),
        _gpu(),
    ]


def abilities(findings: Sequence[Finding]) -> dict[str, bool]:
    """What works altogether."""
    works = {finding.name: finding.works for finding in findings}
    builds = works["TensorRT-RTX targets"] or works["tensorrt"]
    return {
        "compile": works["torch"],
        "verify": works["onnxruntime"],
        "build_engine": builds,
        "run_engine": builds and works["cuda-bindings"] and works["GPU"],
    }


def _package(package: Package) -> Finding:
    version = installed_version(package.names)
    install = "" if version is not None else package.install
    return Finding(package.names[0].removesuffix("-cu13"), version or "missing", package.purpose, install)


def _execution_providers() -> Finding:
    purpose = "onnxruntime-cuda, onnxruntime-tensorrt"
    try:
        import onnxruntime
    except ImportError:
        return Finding("onnxruntime providers", "none", purpose, "pip install 'slimc[cpu]'")
    names = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    install = "" if "CUDA" in names else "pip install onnxruntime-gpu"
    return Finding("onnxruntime providers", ", ".join(names), purpose, install)


def _tensorrt() -> Finding:
    from slimc.backends import tensorrt
    from slimc.backends.tensorrt_common import library_version

    purpose = "build and run engines on the GPU they are for"
    try:
        return Finding("tensorrt", library_version(tensorrt.library()), purpose)
    except MissingError:
        return Finding("tensorrt", "missing", purpose, "pip install 'slimc[gpu]'")


def _rtx_targets() -> Finding:
    from slimc.backends import tensorrt_rtx

    purpose = "build-engine --target"
    try:
        return Finding("TensorRT-RTX targets", ", ".join(tensorrt_rtx.targets_known()), purpose)
    except MissingError:
        return Finding("TensorRT-RTX targets", "none", purpose, "pip install 'slimc[rtx]'")


def _gpu() -> Finding:
    from slimc.backends import cuda

    missing = cuda.gpu_missing()
    if missing is not None:
        return Finding("GPU", missing, "run and time engines", "a machine with an NVIDIA GPU and its driver")
    device = cuda.open_device()
    return Finding("GPU", f"{device.name}, {device.target}", "run and time engines")
