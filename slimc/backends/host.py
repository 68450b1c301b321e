"""What this machine is: processor, cores and the versions of libraries that decide what comes out of it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path

from slimc.backends import cores

# What computes; whatever else is installed changes no result.
LIBRARIES = (
    "numpy",
    "onnx",
    "onnx-ir",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
)


def processor() -> str:
    """The CPU of this machine, with the instruction sets that decide its speed."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        entries = {key.strip(): value.strip() for key, value in lines.items()}
        model, flags = entries.get("model name", model), set(entries.get("flags", "").split())
    fast = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{model}, {' '.join(fast)}" if fast else model


def installed_version(names: Sequence[str]) -> str | None:
    """The version of the first of the distributions `names` that is installed; none where none is."""
    for name in names:
        found = next(iter(importlib.metadata.distributions(name=name)), None)
        if found is not None:
            return found.version
    return None


def describe() -> dict[str, object]:
    """What this machine is, as plain values."""
    versions = {name: installed_version((name,)) for name in LIBRARIES}
    return {
        "cpu": processor(),
        "cores": cores.count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: version for name, version in versions.items() if version is not None},
    }
