"""One command for every figure in the README: JSON, markdown tables and pictures.

    python -m benchmarks.run --quick                   DeiT-T and -S, a few minutes
    python -m benchmarks.run                           everything, about an hour
    python -m benchmarks.run --only latency --sizes deit-s --threads 1 --batch-sizes 1 --seconds 60

Rows are kept in the JSON files: a second run measures what is missing, or was measured for a shorter time. `--fresh` forgets
the rows of the sections that it runs. Leave the machine alone meanwhile: models run in turns, so that the ratios bear some
disturbance, but two threads on two cores cannot share them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import compile as compile_cost
from benchmarks import kernels, operators, report
from benchmarks.checkpoints import SIZES
from benchmarks.dynamic_vit import SIZES as DYNAMIC_SIZES
from benchmarks.latency import SYSTEMS, TIMM, Bench, Case
from benchmarks.store import Store, machine
from benchmarks.timing import ENGINES, Effort

SECTIONS = ("kernels", "latency", "operators", "adaptive", "compile")


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    sections: tuple[str, ...]
    systems: tuple[str, ...]
    dynamic_sizes: tuple[str, ...]
    sizes: tuple[str, ...]
    budgets: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    threads: tuple[int, ...]
    engines: tuple[str, ...]
    compile_sizes: tuple[str, ...]
    targets: tuple[str, ...]
    effort: Effort

    def checkpoints(self) -> Iterator[tuple[str, str, float]]:
        """System, size and budget of every checkpoint."""
        if "ViT-Slim" in self.systems:
            yield from (("ViT-Slim", size, budget) for size in self.sizes for budget in self.budgets)
        if "DynamicViT" in self.systems:
            yield from (("DynamicViT", size, 0.7) for size in self.dynamic_sizes)

    def cases(self, system: str, size: str, budget: float) -> Iterator[Case]:
        """The latency cases of one checkpoint."""
        for batch_size in self.batch_sizes:
            for engine in self.engines:
                for threads in self.threads:
                    yield Case(system, size, budget, batch_size, threads, engine)


def run_latency(plan: Plan, store: Store, folder: Path) -> None:
    """Latency ratios of every case."""
    for checkpoint in plan.checkpoints():
        bench = Bench(*checkpoint, folder)
        for case in plan.cases(*checkpoint):
            if store.has(asdict(case), plan.effort.seconds):
                continue
            rows = list(bench.run(case, plan.effort))
            store.put(asdict(case), rows)
            print(report.latency_lines(case, rows), flush=True)
        for path in folder.glob(f"{bench.stem}*"):
            path.unlink()


def run_operators(plan: Plan, store: Store, folder: Path) -> None:
    """Where the time of DeiT-S goes."""
    for threads in plan.threads:
        key = {"size": "deit-s", "threads": threads}
        if not store.has(key):
            store.put(key, list(operators.measure("deit-s", threads, folder)))


def run_adaptive(plan: Plan, store: Store, folder: Path) -> None:
    """AdaViT's ways at full size, each over the same pictures: means, for its cost depends on the picture."""
    if store.has({}, plan.effort.seconds):
        return
    images, rounds = ("8", "3") if plan.effort.seconds < 10 else ("24", "5")
    path = folder / "adaptive.json"
    command = [sys.executable, "-m", "benchmarks.adaptive", "--images", images, "--rounds", rounds, "--json", str(path)]
    subprocess.run(command, check=True)
    store.put({}, [{**row, "seconds": plan.effort.seconds} for row in json.loads(path.read_text())])


def run_compile(plan: Plan, store: Store) -> None:
    """Compile time and memory of every size; of the largest only once."""
    for size in plan.compile_sizes:
        runs = 3 if size in TIMM and plan.effort.seconds > 5 else 1
        if any(row["size"] == size and row["runs"] >= runs for row in store.rows):
            continue
        rows = compile_cost.measure(size, runs)
        store.put({"size": size}, rows)
        print(f"{size}: " + ", ".join(f"{row['way']} {row['seconds']:.1f} s" for row in rows), flush=True)


def run_kernels(plan: Plan, store: Store, folder: Path) -> None:
    """Kernel counts of DeiT-S for every target."""
    for target in plan.targets:
        key = {"size": "deit-s", "target": target}
        if not store.has(key):
            rows = list(kernels.measure("deit-s", target, folder))
            store.put(key, rows)
            print(f"{target}: kernels {' and '.join(str(row['kernels']) for row in rows)} (dense and slim)", flush=True)


def main() -> None:
    """Measure what is missing, then write tables and pictures."""
    options = _options()
    plan = _plan(options)
    options.out.mkdir(parents=True, exist_ok=True)
    stores = {name: Store(options.out, name, options.fresh and name in plan.sections) for name in SECTIONS}
    with tempfile.TemporaryDirectory(prefix="slimc-benchmarks-") as directory:
        folder = Path(directory)
        if "kernels" in plan.sections:
            run_kernels(plan, stores["kernels"], folder)
        if "latency" in plan.sections:
            run_latency(plan, stores["latency"], folder)
        if "operators" in plan.sections:
            run_operators(plan, stores["operators"], folder)
        if "adaptive" in plan.sections:
            run_adaptive(plan, stores["adaptive"], folder)
        if "compile" in plan.sections:
            run_compile(plan, stores["compile"])
    measured_on = machine() if any(store.changed for store in stores.values()) else report.measured_on(options.out)
    report.write(options.out, {name: store.rows for name, store in stores.items()}, measured_on)
    print(f"wrote {options.out / 'results.md'}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="DeiT-T and -S, budget 0.7, batch size 1, short rounds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION")
    parser.add_argument("--fresh", action="store_true", help="forget what these sections measured before")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--sizes", nargs="+", choices=TIMM, help="of ViT-Slim")
    parser.add_argument("--dynamic-sizes", nargs="+", choices=DYNAMIC_SIZES)
    parser.add_argument("--budgets", nargs="+", type=float)
    parser.add_argument("--batch-sizes", nargs="+", type=int)
    parser.add_argument("--threads", nargs="+", type=int)
    parser.add_argument("--engines", nargs="+", choices=ENGINES)
    parser.add_argument("--compile-sizes", nargs="+", choices=SIZES)
    parser.add_argument("--targets", nargs="+", choices=kernels.TARGETS)
    parser.add_argument("--seconds", type=float, help="for every latency case, all its models together")
    return parser.parse_args()


def _plan(options: argparse.Namespace) -> Plan:
    quick = options.quick
    cores = os.cpu_count() or 1
    return Plan(
        sections=tuple(options.only),
        systems=tuple(options.systems),
        dynamic_sizes=tuple(options.dynamic_sizes or (("deit-s",) if quick else ("deit-s", "lvvit-s"))),
        sizes=tuple(options.sizes or (("deit-t", "deit-s") if quick else TIMM)),
        budgets=tuple(options.budgets or ((0.7,) if quick else (0.7, 0.5))),
        batch_sizes=tuple(options.batch_sizes or ((1,) if quick else (1, 8))),
        threads=tuple(options.threads or (threads for threads in (1, 2) if threads <= cores)),
        engines=tuple(options.engines or ENGINES),
        compile_sizes=tuple(options.compile_sizes or (("deit-t", "deit-s") if quick else SIZES)),
        targets=tuple(options.targets or (("sm89",) if quick else kernels.TARGETS)),
        effort=Effort(options.seconds or (4 if quick else 10), 5),
    )


if __name__ == "__main__":
    main()
