"""Which versions of what slimc stands on serve: one environment a version, in which models of every system are verified.

    python -m benchmarks.versions                          all of them, half an hour and more
    python -m benchmarks.versions --only onnxruntime       one axis
    python -m benchmarks.versions --only python --python ~/.pyenv/versions/3.13.0/bin/python

Axes: ``onnxruntime``, ``openvino`` and ``tensorrt-rtx`` (which builds), each with the newest of everything else; ``bounds``,
the lower bounds of pyproject.toml all together; ``python``, every Python that is named, with the newest of everything.
Models are exported here and verified there by the reference beside them, so that only ``bounds`` needs torch there.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slimc
from benchmarks.checkpoints import write_checkpoint
from benchmarks.store import Row, Store, machine, table
from slimc.files.output import replacing

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT / "tests" / "data"

CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT-Slim": ("vitslim-a-channel-0.7", {}),
    "DynamicViT": ("dynamicvit-a-deit-0.7", {"num_heads": 4, "pruning_loc": (3, 6, 9)}),
    "AdaViT": ("adavit-a-head-layer", {}),
}
TARGETS: dict[str, dict[str, Any]] = {
    "generic": {"target": "generic"},
    "cpu, 1 thread": {"target": "cpu", "threads": 1},
    "cpu, 2 threads": {"target": "cpu", "threads": 2},
    "cpu, opset 17": {"target": "cpu", "opset": 17},
    "sm89": {"target": "sm89"},
}
ONNXRUNTIME = (
    *("1.15.1", "1.16.3", "1.17.3", "1.18.1", "1.19.2", "1.20.1", "1.22.1", "1.23.0", "1.23.1", "1.23.2"),
    *("1.24.4", "1.26.0", "1.28.0", "1.30.0", "1.32.0"),
)
OPENVINO = ("2024.0.0", "2024.6.0", "2025.0.0", "2025.4.1", "2026.4.1")
TENSORRT_RTX = ("1.4.0.76", "1.5.0.114", "1.6.1.120", "1.7.1.116")
# Run where the versions are: what becomes of every model, as JSON by its name.
_VERIFY = """
import json, sys, slimc
found = {}
for label, model in json.loads(sys.argv[1]).items():
    try:
        found[label] = ["right", ""] if slimc.verify(model, backend=sys.argv[2]).passed else ["wrong", ""]
    except slimc.MismatchError as error:
        found[label] = ["wrong", str(error)]
    except slimc.UserError as error:
        found[label] = ["refused", str(error)]
print(json.dumps(found))
"""
_BUILD = """
import json, sys, slimc
found = {}
for label, model in json.loads(sys.argv[1]).items():
    try:
        built = slimc.build_engine(model, "m.engine", precision="fp16", target="sm89", backend=sys.argv[2], verify=False)
        lost = [block.name for block in built.facts.blocks if block.fused < block.attentions]
        found[label] = ["right", ""] if not lost else ["not fused", ", ".join(lost)]
    except slimc.UserError as error:
        found[label] = ["refused", str(error)]
print(json.dumps(found))
"""
_EXPORT = """
import json, sys, slimc
found = {}
for system, (source, options) in json.loads(sys.argv[1]).items():
    try:
        report = slimc.export(source, "m.onnx", target="cpu", **options)
        found[f"export of {system}"] = ["right", ""] if report.comparison.passed else ["wrong", ""]
    except slimc.UserError as error:
        found[f"export of {system}"] = ["refused", str(error)]
print(json.dumps(found))
"""
_OLD_NUMPY = "numpy<2"  # what was built before NumPy 2 does not load with it
_RUNNING = ("pip", "install", "--quiet", "--disable-pip-version-check")


@dataclass(frozen=True)
class Environment:
    """A virtual environment with slimc in it: `axis` and `version` say what it tries, `packages` what is installed."""

    axis: str
    version: str
    packages: tuple[str, ...]
    python: Path
    backend: str = "onnxruntime"


def environments(pythons: Sequence[Path]) -> Iterator[Environment]:
    """Every environment there is to try."""
    here = Path(sys.executable)
    for version in ONNXRUNTIME:
        old = tuple(map(int, version.split("."))) < (1, 19)
        yield Environment("onnxruntime", version, (f"onnxruntime=={version}", *([_OLD_NUMPY] if old else [])), here)
    for version in OPENVINO:
        old = version < "2024.6"
        packages = (f"openvino=={version}", *([_OLD_NUMPY] if old else []))
        yield Environment("openvino", version, packages, here, "openvino")
    for version in TENSORRT_RTX:
        yield Environment("tensorrt-rtx", version, (f"tensorrt-rtx-cu13=={version}",), here, "tensorrt-rtx")
    yield Environment("bounds", "all", tuple(lower_bounds()), _oldest(pythons) or here)
    for python in pythons:
        found = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
        yield Environment("python", found, ("onnxruntime",), python)


def _oldest(pythons: Sequence[Path]) -> Path | None:
    return pythons[0] if pythons else None


def lower_bounds() -> list[str]:
    """The dependencies of compiling and running on a CPU at the versions that pyproject.toml names as the least."""
    text = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r'"([A-Za-z0-9-]+)>=([0-9.]+)"', text)
    names = ("numpy", "onnx", "onnx-ir", "pillow", "rich", "typer", "torch", "safetensors", "onnxruntime")
    return [f"{name}=={version}" for name, version in wanted if name in names]


def export_models(folder: Path) -> dict[str, Path]:
    """Models of every system and target, by what they are called in the table."""
    models: dict[str, Path] = {}
    for system, (vector, options) in CHECKPOINTS.items():
        network = slimc.load(DATA / vector / "checkpoint.pth", **options)
        models |= _exported(system, network, folder)
    # What small networks do not show: an attention whose queries are cut into parts for the threads.
    write_checkpoint("deit-t", folder / "deit-t.pth", 0.7)
    return models | _exported("DeiT-T", slimc.load(folder / "deit-t.pth"), folder)


def _exported(system: str, network: slimc.Network, folder: Path) -> dict[str, Path]:
    models: dict[str, Path] = {}
    for name, how in TARGETS.items():
        label = f"{system}, {name}"
        models[label] = folder / f"{re.sub('[^a-z0-9]+', '-', label.lower())}.onnx"
        slimc.export(network, models[label], **how)
    return models


def tried(environment: Environment, models: dict[str, Path], folder: Path) -> list[Row]:
    """What came of every model in `environment`, which is made in `folder`."""
    place = folder / re.sub("[^a-z0-9.]+", "-", f"{environment.axis}-{environment.version}")
    key = {"axis": environment.axis, "version": environment.version}
    try:
        _run([environment.python, "-m", "venv", place])
        python = place / "bin" / "python"
        _run([python, "-m", *_RUNNING, *environment.packages, _slimc_of(environment)])
    except subprocess.CalledProcessError as error:
        return [{**key, "model": "all", "outcome": "not installable", "line": _last_line(error.stderr)}]
    if environment.axis == "tensorrt-rtx":
        paths = {label: str(model) for label, model in models.items() if label.endswith("sm89")}
        return _found(python, _BUILD, paths, environment, place)
    rows = _found(python, _VERIFY, {label: str(model) for label, model in models.items()}, environment, place)
    if environment.axis == "bounds":  # compiling itself, with the oldest of everything
        sources = {
            system: (str(DATA / vector / "checkpoint.pth"), options)
            for system, (vector, options) in CHECKPOINTS.items()
        }
        rows += _found(python, _EXPORT, sources, environment, place)
    return rows


def _found(python: Path, script: str, given: object, environment: Environment, place: Path) -> list[Row]:
    """What `script` found where the versions are: a row a model, or one that says that it broke."""
    key = {"axis": environment.axis, "version": environment.version}
    command: list[str | Path] = [python, "-c", script, json.dumps(given), environment.backend]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        return [{**key, "model": "all", "outcome": "crash", "line": _last_line(done.stderr)}]
    outcomes: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return [
        {**key, "model": label, "outcome": outcome, "line": line[:300]} for label, (outcome, line) in outcomes.items()
    ]


def _slimc_of(environment: Environment) -> str:
    return f"{ROOT}[compile]" if environment.axis == "bounds" else str(ROOT)


def _run(command: Sequence[object]) -> None:
    subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:300]


def write_table(rows: Sequence[Row], path: Path) -> None:
    """The table of docs: a line a version, a column a target, for all systems together."""
    parts = [f"Tried on {machine()}.\n"]
    for axis in dict.fromkeys(row["axis"] for row in rows):
        of_axis = [row for row in rows if row["axis"] == axis]
        columns = list(dict.fromkeys(row["model"].partition(", ")[2] or row["model"] for row in of_axis))
        lines = []
        for version in dict.fromkeys(row["version"] for row in of_axis):
            cells = [_cell([r for r in of_axis if r["version"] == version], column) for column in columns]
            lines.append((version, *cells))
        parts += [f"### {axis}\n", table((axis, *columns), lines) + "\n"]
    with replacing(path) as (temporary,):
        temporary.write_text("\n".join(parts))


def _cell(rows: Sequence[Row], column: str) -> str:
    """What came of the systems' models of one target: one word, or a word for each that differs."""
    found = {row["model"].partition(", ")[0]: row["outcome"] for row in rows if row["model"].endswith(column)}
    if not found:
        return "-"
    outcomes = set(found.values())
    return outcomes.pop() if len(outcomes) == 1 else ", ".join(f"{name} {outcome}" for name, outcome in found.items())


def main() -> None:
    """Try what is asked for; rows that are there already are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", default=[], help="onnxruntime, openvino, tensorrt-rtx, bounds, python"
    )
    parser.add_argument("--python", action="append", default=[], type=Path, help="a Python to try, the oldest first")
    parser.add_argument("--fresh", action="store_true", help="forget what was found before")
    options = parser.parse_args()
    store = Store(RESULTS, "versions", options.fresh)
    with tempfile.TemporaryDirectory(prefix="slimc-versions-") as directory:
        models = export_models(Path(directory))
        for environment in environments(options.python):
            key = {"axis": environment.axis, "version": environment.version}
            if (options.only and environment.axis not in options.only) or store.has(key):
                continue
            rows = tried(environment, models, Path(directory))
            store.put(key, rows)
            print(environment.axis, environment.version, json.dumps({row["model"]: row["outcome"] for row in rows}))
            print(*sorted({row["line"] for row in rows if row["line"]}), sep="\n", flush=True)
    write_table(store.rows, RESULTS / "versions.md")


if __name__ == "__main__":
    main()
