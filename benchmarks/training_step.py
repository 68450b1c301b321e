"""One training step of a slim network as a PyTorch module, against the masked network that the research code trains.

    python -m benchmarks.training_step                          slim DeiT-S at a budget of 0.7, batch 8, 2 threads
    python -m benchmarks.training_step --budget 0.5 --batch-size 32

A step is eager float32: forward, cross entropy, backward, AdamW. Times are of steps in turns, in one process; memory is the
most that a process had resident in its steps beyond what it had before it read the network.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

import slimc
from benchmarks.checkpoints import SIZES, write_checkpoint
from benchmarks.store import Store, machine, table
from slimc.files.output import replacing
from slimc.pytorch import to_torch

NAMES = ("masked", "slim")
_EXPLAINED = (
    "A step is eager float32: forward, cross entropy, backward, AdamW. Times are of steps in turns, over those of the "
    "masked network, with quartiles; memory is the most that a process had resident beyond what it had before it read the "
    "network."
)
_STEPS = 3  # after which a process has its gradients, moments and buffers


def network_of(name: str, checkpoint: Path, target: str, batch_size: int) -> nn.Module:
    """The network called `name`, to be trained."""
    searched = slimc.load(checkpoint)
    if name == "masked":
        return copy.deepcopy(searched.pytorch("masked")).requires_grad_(True).train()
    slim = slimc.compile(searched, target=target, batch_size=batch_size)
    return to_torch(slim.model, slimc.find_target(target)).train()


def step_of(network: nn.Module, image: int, classes: int, batch_size: int) -> Callable[[], None]:
    """A training step of `network` on one random batch."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, image, image, generator=generator)
    labels = torch.randint(classes, (batch_size,), generator=generator)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-5)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def resident(kind: str) -> float:
    """Resident memory of this process in MB: "VmRSS" now, "VmHWM" at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(kind))) / 1024


def memory(options: argparse.Namespace) -> None:
    """Print what the steps of a network in a file take, in MB."""
    before = resident("VmRSS")
    network = torch.load(options.memory, weights_only=False)
    step = step_of(network, SIZES[options.size][4], 1000, options.batch_size)
    for _ in range(_STEPS):
        step()
    print(json.dumps(resident("VmHWM") - before))


def measure(options: argparse.Namespace, checkpoint: Path) -> list[dict[str, object]]:
    """A row for each network."""
    steps, peaks = {}, {}
    for name in NAMES:
        network = network_of(name, checkpoint, options.target, options.batch_size)
        peaks[name] = _peak(network, options, checkpoint.with_name(f"{name}.pt"))
        steps[name] = step_of(network, SIZES[options.size][4], 1000, options.batch_size)
        steps[name]()
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for i in range(options.rounds):
        for name in NAMES[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - start)
    rows: list[dict[str, object]] = []
    for name in NAMES:
        low, ratio, high = np.quantile(np.array(times[name]) / np.array(times["masked"]), (0.25, 0.5, 0.75))
        rows.append(
            {
                "network": name,
                "seconds": float(np.median(times[name])),
                "ratio": float(ratio),
                "low": float(low),
                "high": float(high),
                "megabytes": peaks[name],
                "memory_ratio": peaks[name] / peaks["masked"],
            }
        )
    return rows


def _peak(network: nn.Module, options: argparse.Namespace, path: Path) -> float:
    """What the steps of `network` take in a process of their own, which finds it in the file `path`."""
    torch.save(network, path)
    given = [f"--size={options.size}", f"--batch-size={options.batch_size}", f"--threads={options.threads}"]
    command = [sys.executable, "-m", "benchmarks.training_step", *given, f"--memory={path}"]
    return float(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def main() -> None:
    """Measure, and write the rows of one size, budget and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="deit-s")
    parser.add_argument("--budget", type=float, default=0.7)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--target", default="generic")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        memory(options)
        return
    case = {key: getattr(options, key) for key in ("size", "budget", "batch_size", "threads", "target")}
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory) / "searched.pth"
        write_checkpoint(options.size, checkpoint, options.budget)
        rows = measure(options, checkpoint)
    store = Store(options.output, "training_step", fresh=False)
    store.put(case, [case | {"machine": machine()} | row for row in rows])
    text = _table(store.rows)
    print(text)
    with replacing(options.output / "training_step.md") as (temporary,):
        temporary.write_text(text)


def _table(rows: list[dict[str, object]]) -> str:
    columns = ("network", "budget", "batch", "threads", "target", "s", "time", "quartiles", "MB", "memory")
    lines = [
        [
            f"{row['size']} {row['network']}",
            *(str(row[key]) for key in ("budget", "batch_size", "threads", "target")),
            f"{row['seconds']:.2f}",
            f"{row['ratio']:.3f}",
            f"{row['low']:.3f}..{row['high']:.3f}",
            f"{row['megabytes']:.0f}",
            f"{row['memory_ratio']:.3f}",
        ]
        for row in rows
    ]
    machines = "; ".join(dict.fromkeys(str(row["machine"]) for row in rows))
    return f"Measured on {machines}.\n\n{_EXPLAINED}\n\n{table(columns, lines)}"


if __name__ == "__main__":
    main()
