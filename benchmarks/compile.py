"""Compile time and peak memory: slimc against torch.onnx.export, as whole processes in turns.

    python -m benchmarks.compile deit-s --runs 3

slimc compares the model that it writes with the network, unless it is told not to; torch.onnx.export does not. onnxslim,
which folds constants and drops what nobody reads, wants the weights within one protobuf message, so the largest networks go
without. The process that measures imports next to nothing: a child's peak begins with what its parent had when it started.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

SLIMC, UNVERIFIED, TORCH, ONNXSLIM = "slimc", "slimc --no-verify", "torch.onnx.export", "torch.onnx.export + onnxslim"
WAYS = (SLIMC, UNVERIFIED, TORCH, ONNXSLIM)
_IMPORTS = (
    "import torch, onnx, onnx_ir, onnxruntime, slimc.compiler.export, slimc.models.vit_slim_network; "
    "import os; os._exit(0)"
)
_PROTOBUF_LIMIT = 2**31  # bytes


@dataclass(frozen=True)
class Run:
    """One process: wall seconds and peak resident memory in MB."""

    seconds: float
    peak: float


@dataclass(frozen=True)
class Row:
    """What one way takes for one size: medians over the runs; `ratio` is the median of slimc's times over its own."""

    size: str
    way: str
    checkpoint_mb: float
    seconds: float
    ratio: float
    peak_mb: float
    import_peak_mb: float
    runs: int


def run(command: list[str]) -> Run:
    """Run `command` to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return Run(time.perf_counter() - start, usage.ru_maxrss / 1024)


def measure(size: str, runs: int) -> list[dict[str, Any]]:
    """The fields of a `Row` for every way, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.compile", size, "--runs", str(runs)]
    rows: list[dict[str, Any]] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return rows


def measure_here(size: str, runs: int) -> list[Row]:
    """All ways for one size, in turns."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory) / f"{size}.pth"
        run([sys.executable, "-m", "benchmarks.checkpoints", size, str(checkpoint)])
        ours = [sys.executable, "-m", "slimc", "export", str(checkpoint), "-o", f"{directory}/slim.onnx", "--json"]
        theirs = [sys.executable, "-m", "benchmarks.torch_export", str(checkpoint), f"{directory}/torch.onnx"]
        commands = {SLIMC: ours, UNVERIFIED: [*ours, "--no-verify"], TORCH: theirs}
        if checkpoint.stat().st_size < _PROTOBUF_LIMIT:
            commands[ONNXSLIM] = [*theirs, "--onnxslim"]
        run(ours)
        rounds = [{way: run(command) for way, command in commands.items()} for _ in range(runs)]
        imports = run([sys.executable, "-c", _IMPORTS])
        megabytes = checkpoint.stat().st_size / 2**20
    return [
        Row(
            size=size,
            way=way,
            checkpoint_mb=megabytes,
            seconds=median(each[way].seconds for each in rounds),
            ratio=median(each[SLIMC].seconds / each[way].seconds for each in rounds),
            peak_mb=max(each[way].peak for each in rounds),
            import_peak_mb=imports.peak,
            runs=runs,
        )
        for way in commands
    ]


def main() -> None:
    """Measure one size, and print its rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps([asdict(row) for row in measure_here(options.size, options.runs)], indent=1))


if __name__ == "__main__":
    main()
