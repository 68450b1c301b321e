"""Where the time goes: ONNX Runtime's own profile of timm's dense export and of slimc's slim model, by operator.

    python -m benchmarks.operators deit-s --threads 1 2

Profiling itself costs a few microseconds a node, so that many small operators look worse here than they are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.latency import TIMM, Bench
from benchmarks.store import Row, table
from benchmarks.timing import chosen_cores
from slimc.backends import cores

_RUNS, _WARM_UP = 30, 5
MODELS = ("timm dense", "slim")


def profile(path: Path, threads: int, folder: Path) -> dict[str, tuple[int, float]]:
    """Number of nodes and milliseconds in one run, by operator: the sum over nodes of their median times."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with cores.kept_to(chosen_cores(threads)):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        image = session.get_inputs()[0]
        feed = {image.name: np.random.default_rng(0).standard_normal(image.shape, np.float32)}
        for _ in range(_RUNS):
            session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            times[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e3)
    found: dict[str, tuple[int, float]] = {}
    for (kind, _), durations in times.items():
        nodes, total = found.get(kind, (0, 0.0))
        found[kind] = nodes + 1, total + float(np.median(durations[_WARM_UP:]))
    return found


def measure(size: str, threads: int, folder: Path, budget: float = 0.7) -> Iterator[Row]:
    """A row for every operator of both models."""
    bench = Bench("ViT-Slim", size, budget, folder)
    for model in MODELS:
        path = bench.model(model, 1, threads)
        found = profile(path, threads, folder)
        for kind, (nodes, milliseconds) in found.items():
            yield {
                "size": size,
                "threads": threads,
                "model": model,
                "operator": kind,
                "nodes": nodes,
                "ms": milliseconds,
            }


def operators_table(rows: Sequence[Row]) -> str:
    """One line an operator: its nodes and milliseconds in both models, by number of threads."""
    runs = [(n, name) for n in sorted({row["threads"] for row in rows}) for name in MODELS]
    cells = {(row["threads"], row["model"], row["operator"]): row for row in rows}
    weight: dict[str, float] = defaultdict(float)
    for row in rows:
        weight[row["operator"]] += row["ms"]
    lines = []
    for kind in sorted(weight, key=lambda kind: -weight[kind]):
        found = [cells.get((*run, kind)) for run in runs]
        lines.append([kind, *("" if row is None else f"{row['ms']:.2f} ({row['nodes']})" for row in found)])
    sums = [[row for row in rows if (row["threads"], row["model"]) == run] for run in runs]
    lines.append(
        ["all", *(f"{sum(row['ms'] for row in part):.2f} ({sum(row['nodes'] for row in part)})" for part in sums)]
    )
    return table(["operator, ms (nodes)", *(f"{name}, threads: {n}" for n, name in runs)], lines)


def main() -> None:
    """Profile one size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=TIMM)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slimc-benchmarks-") as directory:
        rows = [row for n in options.threads for row in measure(options.size, n, Path(directory))]
    print(operators_table(rows))


if __name__ == "__main__":
    main()
