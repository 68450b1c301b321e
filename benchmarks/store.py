"""What was measured, as JSON: rows that are kept from run to run, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from slimc.files.output import replacing

Row = dict[str, Any]

_PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "torch-pruning", "onnxslim", "tensorrt-rtx-cu13")


class Store:
    """The rows of one section in ``<section>.json``."""

    def __init__(self, folder: Path, section: str, fresh: bool) -> None:
        self._path = folder / f"{section}.json"
        self.changed = False  # since it was read
        self.rows: list[Row] = [] if fresh or not self._path.exists() else json.loads(self._path.read_text())

    def has(self, key: Mapping[str, Any], seconds: float = 0.0) -> bool:
        """Whether there are rows of `key` that were measured for `seconds` or longer."""
        return any(_matches(row, key) and row.get("seconds", 0.0) >= seconds for row in self.rows)

    def put(self, key: Mapping[str, Any], rows: Sequence[Row]) -> None:
        """Replace the rows of `key` by `rows`, and write everything."""
        self.changed = True
        self.rows = [row for row in self.rows if not _matches(row, key)] + list(rows)
        with replacing(self._path) as (temporary,):
            temporary.write_text(json.dumps(self.rows, indent=1) + "\n")


def _matches(row: Row, key: Mapping[str, Any]) -> bool:
    return all(row.get(name) == value for name, value in key.items())


def machine() -> str:
    """One line about this machine and its libraries."""
    found = [f"{package} {number}" for package in _PACKAGES if (number := _version(package))]
    return f"{_processor()}; Python {platform.python_version()}, {', '.join(found)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        if names:
            return f"{len(names)} x {names[0]}"
    return platform.processor() or platform.machine()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table: the first column to the left, the others to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
