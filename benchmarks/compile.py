"""Compile time and peak memory: slimc (verified) against torch.onnx.export (not verified), as whole processes in turns.

    python -m benchmarks.compile deit-s --runs 3 [--no-onnxslim]

Prints wall seconds, the ratio of the two and the peak memory, as JSON. The process that measures imports next to nothing: a
child's peak begins with what its parent had when it was started.
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

_IMPORTS = (
    "import torch, onnx, onnx_ir, onnxruntime, slimc.export, slimc.models.vit_slim_network; import os; os._exit(0)"
)
_PROTOBUF_LIMIT = 2**31  # bytes; onnxslim wants the weights within one message


@dataclass(frozen=True)
class Run:
    """One process: wall seconds and peak resident memory in MB."""

    seconds: float
    peak: float


@dataclass(frozen=True)
class Row:
    """Figures of one size: medians over the runs; `ratio` is the median of the pairs' ratios."""

    size: str
    checkpoint_mb: float
    slimc_seconds: float
    torch_seconds: float
    ratio: float
    slimc_peak_mb: float
    torch_peak_mb: float
    import_peak_mb: float
    times_checkpoint: float
    onnxslim: bool


def run(command: list[str]) -> Run:
    """Run `command` to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return Run(time.perf_counter() - start, usage.ru_maxrss / 1024)


def measure(size: str, runs: int) -> dict[str, Any]:
    """The fields of a `Row`, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.compile", size, "--runs", str(runs)]
    row: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return row


def measure_here(size: str, runs: int, onnxslim: bool) -> Row:
    """Both ways for one size, in turns; `onnxslim` follows torch.onnx.export where its weights fit a protobuf message."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory) / f"{size}.pth"
        run([sys.executable, "-m", "benchmarks.checkpoints", size, str(checkpoint)])
        ours = [sys.executable, "-m", "slimc", "export", str(checkpoint), "-o", f"{directory}/slim.onnx", "--json"]
        theirs = [sys.executable, "-m", "benchmarks.torch_export", str(checkpoint), f"{directory}/torch.onnx"]
        onnxslim = onnxslim and checkpoint.stat().st_size < _PROTOBUF_LIMIT
        theirs += ["--onnxslim"] if onnxslim else []
        run(ours)
        pairs = [(run(ours), run(theirs)) for _ in range(runs)]
        imports = run([sys.executable, "-c", _IMPORTS])
        megabytes = checkpoint.stat().st_size / 2**20
    peak = max(ours.peak for ours, _ in pairs)
    return Row(
        size=size,
        checkpoint_mb=megabytes,
        slimc_seconds=median(ours.seconds for ours, _ in pairs),
        torch_seconds=median(theirs.seconds for _, theirs in pairs),
        ratio=median(ours.seconds / theirs.seconds for ours, theirs in pairs),
        slimc_peak_mb=peak,
        torch_peak_mb=max(theirs.peak for _, theirs in pairs),
        import_peak_mb=imports.peak,
        times_checkpoint=(peak - imports.peak) / megabytes,
        onnxslim=onnxslim,
    )


def main() -> None:
    """Measure one size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-onnxslim", action="store_true", help="torch.onnx.export alone")
    options = parser.parse_args()
    print(json.dumps(asdict(measure_here(options.size, options.runs, not options.no_onnxslim))))


if __name__ == "__main__":
    main()
