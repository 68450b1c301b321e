"""Latency on an NVIDIA GPU in PyTorch: DeiT-S dense, masked and slim, every network compiled and in a CUDA graph.

    python -m benchmarks.gpu                            about 7 minutes on an H100
    python -m benchmarks.gpu --device cpu --quick       the same code without a GPU, in eager PyTorch: no figures

Every network lives in a process of its own and is compiled there by `torch.compile`, all of them at the same time. Then
they are timed in turns, alone on the GPU. A time is that of CUDA events around replays of the graph, one after the other:
no transfers and no launches are in it, and weights stay in the cache as far as they fit. Weights and activations all have
the precision of the row.

timm            timm's dense network
dense, masked   the research code's, with every mask at one, and as it was searched
slimc dense     the dense network through the code that computes the slim one: what all are compared with
slim            what slimc compiles for SM90
slim by rows    that with a row of zeros for every ghost: attentions without a bias
one group       slim by rows, where every attention has all its heads in one group
own queries     slim by rows, where queries of rows that live on have a product of their own
twin            a dense network, all blocks alike, of about as many MACs as the masks leave

What is made from the IR is first held against the interpreter, in float64. Every network is held against itself in float32,
the slim ones against the masked.
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.checkpoints import SIZES, write_checkpoint
from benchmarks.contestants import AT_EVERY_BUDGET, BASELINE, ONCE, Case, Here, Seat, Subject, answer, ask, elsewhere
from benchmarks.store import Row, Store, table
from slimc.files.output import replacing

_ROUNDS = 25
_EXPLAINED = (
    "DeiT-S, random weights, zetas as of a real search; everything through torch.compile, in a CUDA graph. Milliseconds are "
    "medians of interleaved rounds. Latency and MACs are over those of slimc dense, with quartiles; MACs are as computed, "
    "padding included. Realised is the share of the MAC cut that arrived as latency, where the cut is what the masks allow: "
    "padding counts against it. Difference is the largest from float32, as a share of the logits' spread. The last columns "
    "are a profile of one run: milliseconds and kernels.\n"
)


def measure(case: Case, seats: dict[Subject, Seat], rounds: int, end: float) -> Iterator[list[Row]]:
    """Rows of `case`: how its networks agree, then the same with their times; what is not ready at `end` is left out."""
    for seat in seats.values():
        seat.send(("prepare", case))
    rows = {}
    for subject in list(seats):
        late = not seats[subject].poll(max(0.0, end - time.monotonic()))
        facts = {"error": "not ready in time"} if late else answer(seats[subject])
        rows[subject] = asdict(case) | {"model": subject.name, "budget": subject.budget} | facts
        if late:
            del seats[subject]
    yield list(rows.values())
    ready = [subject for subject, row in rows.items() if "error" not in row]
    if all(subject.name != BASELINE for subject in ready):
        raise SystemExit("\n".join(f"{row['model']}: {row.get('error', 'ready')}" for row in rows.values()))
    times: dict[Subject, list[float]] = {subject: [] for subject in ready}
    for i in range(rounds):
        for subject in (*ready[i % len(ready) :], *ready[: i % len(ready)]):
            times[subject].append(ask(seats[subject], "turn")["milliseconds"])
    baseline = next(np.array(times[subject]) for subject in ready if subject.name == BASELINE)
    for subject in ready:
        low, ratio, high = np.quantile(np.array(times[subject]) / baseline, (0.25, 0.5, 0.75))
        timed = {"milliseconds": float(np.median(times[subject])), "ratio": ratio, "low": low, "high": high}
        rows[subject] |= timed | ask(seats[subject], "kernels")
    yield list(rows.values())


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="one budget and one case; on a CPU of a tiny network")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu"))
    parser.add_argument("--cases", nargs="+", help="such as fp16-64; rows of other cases are kept")
    parser.add_argument("--minutes", type=float, default=7.0, help="begin no case that may take longer")
    options = parser.parse_args()
    # In each of a dozen processes:
    os.environ |= {"TORCHINDUCTOR_COMPILE_THREADS": "2", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    size = "deit-s"
    if options.quick and options.device == "cpu":
        size, SIZES["tiny"] = "tiny", (64, 4, 4, 8, 64)
    with tempfile.TemporaryDirectory(prefix="slimc-gpu-") as directory:
        subjects = _subjects(size, (0.7,) if options.quick else (0.7, 0.5), options.device, Path(directory))
        seats = {subject: Here(subject) if options.device == "cpu" else elsewhere(subject) for subject in subjects}
        _measure_all(_cases(options), seats, options)


def _cases(options: argparse.Namespace) -> list[Case]:
    if options.cases:
        return [Case(precision, int(batch)) for precision, batch in (case.split("-") for case in options.cases)]
    if options.quick:
        return [Case("fp32", 2) if options.device == "cpu" else Case("fp16", 64)]
    batch_sizes = {"fp16": (64, 1, 256, 8), "bf16": (64, 1)}
    return [Case(precision, batch_size) for precision, each in batch_sizes.items() for batch_size in each]


def _measure_all(cases: Sequence[Case], seats: dict[Subject, Seat], options: argparse.Namespace) -> None:
    """Measure `cases` until there is no time for another, and keep what there is after each."""
    options.output.mkdir(parents=True, exist_ok=True)
    store = Store(options.output, "latency", fresh=not options.cases)
    machine = _machine(options.device)
    end, longest = time.monotonic() + 60 * options.minutes, 0.0
    for case in cases:
        start = time.monotonic()
        if start + longest > end:
            break
        for rows in measure(case, seats, 3 if options.quick else _ROUNDS, end):
            store.put(asdict(case), [row | machine for row in rows])
            _write(options.output / "results.md", store.rows)
        longest = max(longest, time.monotonic() - start)
        print(_case_table(rows), f"{time.monotonic() - start:.0f} s\n", sep="\n", flush=True)


def _subjects(size: str, budgets: Sequence[float], device: str, directory: Path) -> Iterator[Subject]:
    for budget in budgets:
        path = directory / f"{size}-{budget}.pth"
        write_checkpoint(size, path, budget)
        for name in (*(ONCE if budget == budgets[0] else ()), *AT_EVERY_BUDGET):
            yield Subject(name, size, budget, path, device)


def _machine(device: str) -> Row:
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    cuda = f", CUDA {torch.version.cuda}" if device == "cuda" else ""
    return {"machine": f"{card}, torch {torch.__version__}{cuda}", "date": str(datetime.date.today())}


def _write(path: Path, rows: Sequence[Row]) -> None:
    machines = dict.fromkeys(f"{row['machine']}, {row['date']}" for row in rows)
    parts = [f"Measured on {'; '.join(machines)}.\n", _EXPLAINED]
    for case in dict.fromkeys((row["precision"], row["batch_size"]) for row in rows):
        found = [row for row in rows if (row["precision"], row["batch_size"]) == case]
        parts.append(f"## {case[0]}, batch {case[1]}\n\n{_case_table(found)}")
    with replacing(path) as (temporary,):
        temporary.write_text("\n".join(parts))


def _case_table(rows: Sequence[Row]) -> str:
    """A line for every network; one that failed says why."""
    columns = ("network", "budget", "ms", "latency", "quartiles", "MACs", "realised", "difference", "top-1")
    kinds = ("attention", "product", "other")
    dense = next((row["macs"] for row in rows if row["model"] == BASELINE and "macs" in row), None)
    lines = []
    for row in rows:
        line = [row["model"], "" if row["model"] in ONCE and row["model"] != "masked" else str(row["budget"])]
        if "error" in row:
            lines.append([*line, row["error"].splitlines()[0].replace("|", "/"), *[""] * (len(columns) + 1)])
            continue
        line += [f"{row['milliseconds']:.3f}", f"{row['ratio']:.3f}"] if "ratio" in row else ["", ""]
        line.append(f"{row['low']:.3f}..{row['high']:.3f}" if "low" in row else "")
        cut = 1 - row.get("least_macs", row["macs"]) / dense if dense else 0.0
        line += [f"{row['macs'] / dense:.3f}" if dense else ""]
        line.append(f"{(1 - row['ratio']) / cut:.0%}" if cut > 0.01 and "ratio" in row else "")
        line += [f"{row['difference']:.1e}", f"{row['top1_agreement']:.0%}"]
        found = [row.get("kernels", {}).get(kind) for kind in kinds]
        lines.append([*line, *(f"{kernels[1]:.3f} ({kernels[0]})" if kernels else "" for kernels in found)])
    return table((*columns, *(f"{kind}, ms" for kind in kinds)), lines)


if __name__ == "__main__":
    main()
