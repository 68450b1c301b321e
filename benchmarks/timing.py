"""Timing several ONNX models in turns, in a process of its own that is pinned to as many cores as it has threads.

    python -m benchmarks.timing --threads 1 timm.onnx slim.onnx

A round runs every model once, starting with another one each time, and the figures are ratios within rounds: what disturbs
the machine disturbs all models of a round alike. Where the weights of a model come to lie in memory changes its time by up
to a per cent, so rounds are gathered from several processes, which load the models in different orders. Worker threads
sleep while they wait (spinning off), and each keeps to a core of its own. The processor's time is measured too: at one
thread it is the latency less what other processes took, so that both agree on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import numpy.typing as npt

from slimc.backends import cores
from slimc.evaluate import cpu_timing

ENGINES = ("onnxruntime", "openvino")
_WARM_UP = 2
_RUNS = 3  # of a model in a row, where it is fast: the first brings back what the others drove out of the caches
_FAST = 0.05
_PROCESSES = 3

Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Effort:
    """How long to measure: about `seconds` for all models of a case together, but at least `rounds` rounds."""

    seconds: float
    rounds: int


def measure(paths: Sequence[Path], engine: str, threads: int, effort: Effort) -> Times:
    """Seconds [2, models, rounds] of the models at `paths`, by wall clock and of the processor, from pinned processes."""
    command = [sys.executable, "-m", "benchmarks.timing", "--engine", engine, "--threads", str(threads), "--json"]
    command += ["--seconds", str(effort.seconds / _PROCESSES), "--rounds", str(-(-effort.rounds // _PROCESSES))]
    gathered = []
    for i in range(_PROCESSES):
        order = np.roll(np.arange(len(paths)), i * len(paths) // _PROCESSES)
        finished = subprocess.run([*command, *(str(paths[int(j)]) for j in order)], check=True, stdout=subprocess.PIPE)
        gathered.append(np.array(json.loads(finished.stdout.splitlines()[-1]))[:, np.argsort(order)])
    return np.concatenate(gathered, axis=2)


def chosen_cores(threads: int) -> tuple[int, ...]:
    """The last `threads` of the cores that this process may use."""
    return cores.usable()[-threads:]


def time_in_turns(runs: Sequence[Callable[[], object]], effort: Effort) -> Times:
    """Seconds [2, models, rounds], by the wall clock and of the processor; a round takes the fastest of its runs."""
    warm = [_run(run) for run in runs for _ in range(_WARM_UP)][_WARM_UP - 1 :: _WARM_UP]
    repeats = [_RUNS if seconds < _FAST else 1 for seconds, _ in warm]
    rounds: list[list[tuple[float, float]]] = []
    end = perf_counter() + effort.seconds
    while len(rounds) < effort.rounds or perf_counter() < end:
        times = [(0.0, 0.0)] * len(runs)
        for offset in range(len(runs)):
            i = (len(rounds) + offset) % len(runs)
            results = [_run(runs[i]) for _ in range(repeats[i])]
            times[i] = min(seconds for seconds, _ in results), min(processor for _, processor in results)
        rounds.append(times)
    return np.asarray(np.array(rounds).transpose(2, 1, 0))


def _run(run: Callable[[], object]) -> tuple[float, float]:
    start, processor = perf_counter(), process_time()
    run()
    return perf_counter() - start, process_time() - processor


def main() -> None:
    """Measure, and print medians of the ratios to the first model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print the seconds of every round")
    options = parser.parse_args()
    chosen = chosen_cores(options.threads)
    with cores.kept_to(chosen):
        runs = [cpu_timing.timer(cpu_timing.load(path, options.engine, options.threads)) for path in options.models]
        with cpu_timing.running(options.engine, chosen):
            times = time_in_turns(runs, Effort(options.seconds, options.rounds))
    if options.json:
        print(json.dumps(times.tolist()))
        return
    print("   median   ratio  (quartiles)       processor  ratio")
    for path, wall, processor in zip(options.models, *times, strict=True):
        low, middle, high = np.quantile(wall / times[0, 0], (0.25, 0.5, 0.75))
        again = np.median(processor / times[1, 0])
        print(
            f"{np.median(wall) * 1e3:9.2f}  {middle:.4f}  ({low:.4f}..{high:.4f})  "
            f"{np.median(processor) * 1e3:9.2f}  {again:.4f}  {path.name}"
        )


if __name__ == "__main__":
    main()
