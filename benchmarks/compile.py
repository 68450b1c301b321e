"""Compile time and peak memory: slimc (verified) against torch.onnx.export (not verified), as whole processes in turns.

    python -m benchmarks.compile --sizes deit-t deit-s deit-b --runs 3 [--onnxslim] [--json compile.json]

Prints, for every size, medians, the ratio of the two, and the peak memory above what importing the libraries takes.
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

from benchmarks.checkpoints import SIZES, write_checkpoint

_IMPORTS = "import torch, onnx, onnx_ir, onnxruntime, slimc.export, slimc.models.vit_slim_network"


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


def run(command: list[str]) -> Run:
    """Run `command` to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return Run(time.perf_counter() - start, usage.ru_maxrss / 1024)


def measure(size: str, runs: int, onnxslim: bool, budget: float) -> Row:
    """Both ways for one size, in turns."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory) / f"{size}.pth"
        write_checkpoint(size, checkpoint, budget)
        ours = [sys.executable, "-m", "slimc", "export", str(checkpoint), "-o", f"{directory}/slim.onnx", "--json"]
        theirs = [sys.executable, "-m", "benchmarks.torch_export", str(checkpoint), f"{directory}/torch.onnx"]
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
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["deit-t", "deit-s", "deit-b"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.7)
    parser.add_argument("--onnxslim", action="store_true", help="follow torch.onnx.export by onnxslim")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(
        "size      checkpoint    slimc   torch.onnx  ratio   peak slimc  peak torch  imports  (peak - imports) / checkpoint"
    )
    rows = []
    for size in options.sizes:
        row = measure(size, options.runs, options.onnxslim, options.budget)
        rows.append(asdict(row))
        print(
            f"{row.size:8}  {row.checkpoint_mb:7.0f} MB  {row.slimc_seconds:6.2f} s  {row.torch_seconds:7.2f} s  "
            f"{row.ratio:5.2f}  {row.slimc_peak_mb:7.0f} MB  {row.torch_peak_mb:7.0f} MB  "
            f"{row.import_peak_mb:4.0f} MB  {row.times_checkpoint:.2f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
