"""slimc: from the vision transformer that you have to the fastest engine that computes the same.

    net = slimc.load("checkpoint.pth")
    slim = slimc.compile(net, target="cpu", threads=2)
    slim.export("small.onnx")
    slimc.verify("small.onnx")

Names are imported when they are first used: importing slimc costs nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from slimc.errors import (
    BudgetError,
    CheckpointError,
    MismatchError,
    MissingError,
    ModelFileError,
    OptionError,
    OutputError,
    SlimcError,
    UserError,
)

if TYPE_CHECKING:
    from slimc.compiler.api.accuracy import accuracy
    from slimc.compiler.api.artefacts import bench, build_engine, verify
    from slimc.compiler.api.masks import mask
    from slimc.compiler.api.modules import export_program, from_torch
    from slimc.compiler.api.networks import compile, export, load  # noqa: A004 - as in re and torch
    from slimc.compiler.api.slim import save
    from slimc.compiler.compile import Compiled
    from slimc.compiler.engine import EngineReport
    from slimc.compiler.export import ExportReport
    from slimc.compiler.verify import Verdict
    from slimc.evaluate.accuracy import AccuracyReport
    from slimc.evaluate.latency import Measurement
    from slimc.evaluate.tune import tune
    from slimc.files.metadata import Metadata, read_metadata
    from slimc.models.system import Network
    from slimc.targets.target import Target, find_target
    from slimc.targets.tuning import Tuning

    __version__: str

__all__ = [
    "AccuracyReport",
    "BudgetError",
    "CheckpointError",
    "Compiled",
    "EngineReport",
    "ExportReport",
    "Measurement",
    "Metadata",
    "MismatchError",
    "MissingError",
    "ModelFileError",
    "Network",
    "OptionError",
    "OutputError",
    "SlimcError",
    "Target",
    "Tuning",
    "UserError",
    "Verdict",
    "accuracy",
    "bench",
    "build_engine",
    "compile",
    "export",
    "export_program",
    "find_target",
    "from_torch",
    "load",
    "mask",
    "read_metadata",
    "save",
    "tune",
    "verify",
]

# Modules that scripts outside of slimc import, and where they are now.
_MOVED = {"slimc.images": "slimc.files.images"}

# Where each name is: the same as above, for Python.
_MODULES = {
    "slimc.compiler.api.accuracy": ("accuracy",),
    "slimc.compiler.api.artefacts": ("bench", "build_engine", "verify"),
    "slimc.compiler.api.masks": ("mask",),
    "slimc.compiler.api.modules": ("export_program", "from_torch"),
    "slimc.compiler.api.networks": ("compile", "export", "load"),
    "slimc.compiler.api.slim": ("save",),
    "slimc.compiler.compile": ("Compiled",),
    "slimc.compiler.engine": ("EngineReport",),
    "slimc.compiler.export": ("ExportReport",),
    "slimc.compiler.verify": ("Verdict",),
    "slimc.evaluate.accuracy": ("AccuracyReport",),
    "slimc.evaluate.latency": ("Measurement",),
    "slimc.evaluate.tune": ("tune",),
    "slimc.files.metadata": ("Metadata", "read_metadata"),
    "slimc.models.system": ("Network",),
    "slimc.targets.target": ("Target", "find_target"),
    "slimc.targets.tuning": ("Tuning",),
}

if not TYPE_CHECKING:  # a type checker knows the names, and is to find others

    def __getattr__(name: str) -> object:
        import importlib

        if name == "__version__":
            return importlib.import_module("slimc.files.version").VERSION
        for module, names in _MODULES.items():
            if name in names:
                return getattr(importlib.import_module(module), name)
        raise AttributeError(f"module 'slimc' has no attribute {name!r}")

    class _Moved:
        """Finds modules by the names that scripts know from before they got rooms."""

        @staticmethod
        def find_spec(name: str, _path: object = None, _target: object = None) -> object:
            if name not in _MOVED:
                return None
            from importlib.util import find_spec, spec_from_file_location

            found = find_spec(_MOVED[name])
            return None if found is None else spec_from_file_location(name, found.origin)

    sys.meta_path.append(_Moved)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
