"""Tables in markdown and pictures of what was measured.

python -m benchmarks.report                        draws again what is stored, without measuring
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import SIZES as CHECKPOINTS
from benchmarks.compile import ONNXSLIM, SLIMC, TORCH, WAYS
from benchmarks.dynamic_vit import SIZES as DYNAMIC_CHECKPOINTS
from benchmarks.latency import SYSTEMS, TIMM, Case
from benchmarks.operators import operators_table
from benchmarks.plots import ENGINES, plot_all_latencies, plot_compile, plot_latency
from benchmarks.store import Row, machine, table
from slimc.files.output import replacing

_CLEARLY = 1.02  # a ratio beyond what rounds differ by
_ORDER = ("system", "size", "budget", "batch_size", "threads", "engine")


def latency_lines(case: Case, rows: Sequence[Row]) -> str:
    """The rows of one case for the terminal."""
    head = (
        f"{case.system} {case.size} budget {case.budget} batch {case.batch_size} {case.engine} {case.threads} thread(s)"
    )
    lines = [
        f"  {row['model']:13} {row['milliseconds']:8.1f} ms  MACs {row['macs_ratio']:.3f}  "
        f"wall {row['ratio']:.3f} ({row['low']:.3f}..{row['high']:.3f}) realised {_share(row['share']):>4}  "
        f"processor {row['processor_ratio']:.3f} realised {_share(row['processor_share']):>4}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def write(folder: Path, rows: Mapping[str, Sequence[Row]], measured_on: str) -> None:
    """Write ``results.md`` and the pictures of every section that has rows, all of them `measured_on` one machine."""
    parts = [f"Measured on {measured_on}.\n"]
    if rows["latency"]:
        latency = sorted(rows["latency"], key=_place)
        parts += [_latency(latency, engine, title) for engine, title in ENGINES.items()]
        plot_latency(latency, folder / "latency.png")
        plot_all_latencies(latency, folder / "latency-all.png")
    if rows["operators"]:
        parts.append(_operators(rows["operators"]))
    if rows["adaptive"]:
        parts.append(_adaptive(rows["adaptive"]))
    if rows["compile"]:
        compiled = sorted(rows["compile"], key=lambda row: float(row["checkpoint_mb"]))
        parts.append(_compile(compiled))
        plot_compile(compiled, folder / "compile.png")
    if rows["kernels"]:
        parts.append(_kernels(rows["kernels"]))
    with replacing(folder / "results.md") as (temporary,):
        temporary.write_text("\n".join(parts))


def _latency(rows: Sequence[Row], engine: str, title: str) -> str:
    """One line a case: the slim network's latency against timm's, and the others' beside it."""
    columns = (
        "network",
        "budget",
        "batch",
        "threads",
        "dense, ms",
        "slimc's dense",
        "slim, ms",
        "MACs",
        "latency",
        "processor",
        "realised",
        "regular twin",
        "Torch-Pruning",
        "masked",
    )
    lines = []
    cases = dict.fromkeys(tuple(row[name] for name in _ORDER) for row in rows if row["engine"] == engine)
    for case in cases:
        models = {row["model"]: row for row in rows if tuple(row[name] for name in _ORDER) == case}
        slim, dense = models["slim"], models.get("timm dense", models.get("dense"))
        assert dense is not None
        lines.append(
            [
                f"{case[0]} {case[1]}",
                *(str(value) for value in case[2:5]),
                f"{dense['milliseconds']:.1f}",
                _ratio(models.get("dense") if dense is not models.get("dense") else None),
                f"{slim['milliseconds']:.1f}",
                f"{slim['macs_ratio']:.3f}",
                f"{slim['ratio']:.3f}",
                f"{slim['processor_ratio']:.3f}",
                _share(slim["share"]),
                *(_ratio(models.get(name)) for name in ("regular twin", "Torch-Pruning", "masked")),
            ]
        )
    if not lines:
        return ""
    explained = (
        "MACs, latency and processor time are over those of timm's dense export (slimc's own for LV-ViT); medians of "
        "interleaved rounds. Realised is the share of the MAC cut that arrived as latency, where the cut is what the masks "
        "allow: padding counts against it. At one thread, processor time is what latency is on a machine that does nothing "
        "else."
    )
    if any(row["model"] == "dense" and row["size"] in TIMM for row in rows if row["engine"] == engine):
        explained += (
            " slimc's dense is its export of the network without a cut: what it is below 1, pruning has not won."
        )
    if not any(row["model"] == "masked" for row in rows if row["engine"] == engine):
        explained += f" Masked was not timed with {title}."
    explained += "".join(_spread(rows, engine, threads) for threads in sorted({row["threads"] for row in rows}))
    return f"## Latency, {title}\n\n{explained}\n\n{table(*_filled(columns, lines))}"


def _filled(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Without the columns that no line has anything in."""
    kept = [i for i in range(len(columns)) if any(line[i] for line in lines)]
    return [columns[i] for i in kept], [[line[i] for i in kept] for line in lines]


def _spread(rows: Sequence[Row], engine: str, threads: int) -> str:
    """How much of the cut arrives at batch size 1, best and worst, and how often even heads would be faster."""
    chosen = [row for row in rows if (row["engine"], row["threads"], row["batch_size"]) == (engine, threads, 1)]
    slim = sorted((row for row in chosen if row["model"] == "slim"), key=lambda row: float(row["share"]))
    if not slim:
        return ""
    ratios = {(row["system"], row["size"], row["budget"]): row["ratio"] for row in slim}
    twins = [row for row in chosen if row["model"] == "regular twin"]
    lost = sum(ratios[row["system"], row["size"], row["budget"]] > _CLEARLY * row["ratio"] for row in twins)
    worst = f"{slim[0]['system']} {slim[0]['size']} at {slim[0]['budget']}"
    return (
        f"\n\nBatch size 1, {threads} thread{'s' if threads > 1 else ''}: {_share(slim[0]['share'])} ({worst}) to "
        f"{_share(slim[-1]['share'])} of the cut arrives. Of {len(twins)} networks with ragged heads, {lost or 'none'} "
        f"{'are' if lost > 1 else 'is'} slower than the regular twin by more than {_CLEARLY - 1:.0%}."
    )


def _operators(rows: Sequence[Row]) -> str:
    explained = (
        "DeiT-S at 0.7, batch 1: milliseconds and nodes of one run by ONNX Runtime's profiler, which adds a few "
        "microseconds to every node."
    )
    return f"## Where the time goes\n\n{explained}\n\n{operators_table(rows)}"


def _compile(rows: Sequence[Row]) -> str:
    """One line a network: seconds of every way, slimc's over the others', then peak memory of every way."""
    columns = (
        "network",
        "checkpoint, MB",
        *WAYS,
        "slimc / torch",
        "slimc / + onnxslim",
        *(f"{way}, MB" for way in WAYS),
    )
    lines = []
    for size in dict.fromkeys(row["size"] for row in rows):
        ways = {row["way"]: row for row in rows if row["size"] == size}
        seconds, peaks = (
            [f"{ways[way][field]:{form}}" if way in ways else "" for way in WAYS]
            for field, form in (("seconds", ".1f"), ("peak_mb", ".0f"))
        )
        ratios = [f"{ways[way]['ratio']:.2f}" if way in ways else "" for way in (TORCH, ONNXSLIM)]
        lines.append([size, f"{ways[TORCH]['checkpoint_mb']:.0f}", *seconds, *ratios, *peaks])
    explained = (
        "Seconds of whole processes, and their peak resident memory, of which importing the libraries takes "
        f"{rows[0]['import_peak_mb']:.0f} MB. slimc compares what it writes with the network unless told not to; "
        "onnxslim takes no network of 2 GB."
    )
    explained += f"\n\n{_largest(rows)}"
    return f"## Compile time and memory\n\n{explained}\n\n{table(columns, lines)}"


def _largest(rows: Sequence[Row]) -> str:
    """What the largest network costs, and from which one on slimc takes longer or more memory than torch.onnx.export."""
    size = rows[-1]["size"]
    ways = {row["way"]: row for row in rows if row["size"] == size}
    ours, theirs = ways[SLIMC], ways[TORCH]
    slower = [row["size"] for row in rows if row["way"] == TORCH and row["ratio"] > 1]
    torch = {row["size"]: row["peak_mb"] for row in rows if row["way"] == TORCH}
    larger = [row["size"] for row in rows if row["way"] == SLIMC and row["peak_mb"] > torch[row["size"]]]
    runs = "once" if ours["runs"] == 1 else f"{ours['runs']} times"
    return (
        f"The largest, {size}, was compiled {runs}: slimc takes {ours['seconds']:.1f} s and {ours['peak_mb']:,.0f} MB, "
        f"torch.onnx.export {theirs['seconds']:.1f} s and {theirs['peak_mb']:,.0f} MB, which is "
        f"{ours['seconds'] / theirs['seconds']:.1f} times the time and {ours['peak_mb'] / theirs['peak_mb']:.1f} times the "
        f"memory. slimc is slower than torch.onnx.export for {_names(slower)}, and takes more memory for {_names(larger)}."
    )


def _names(sizes: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(sizes[:-1]), *sizes[-1:]))) or "none"


def _adaptive(rows: Sequence[Row]) -> str:
    columns = ("way", "ms", "time", "MACs", "of the MAC cut", "worst image, dense = 1")
    lines = [
        [
            row["way"],
            f"{row['milliseconds']:.1f}",
            f"{row['time_share']:.3f}",
            f"{row['macs_share']:.3f}",
            _share(row["cut_arrived"]),
            f"{row['worst_to_dense']:.2f}",
        ]
        for row in rows
    ]
    explained = "Ada-DeiT-S, ONNX Runtime, one thread; means over pictures, time and MACs over those of masked."
    return f"## AdaViT\n\n{explained}\n\n{table(columns, lines)}"


def _kernels(rows: Sequence[Row]) -> str:
    columns = ("target", "network", "kernels", "most more than dense in a block", "attentions fused", "plan, MB")
    lines = [
        [
            str(row["target"]),
            f"{row['size']} {row['variant']}",
            str(row["kernels"]),
            str(row["most_more_in_a_block"]),
            f"{row['fused']} of {row['attentions']}",
            f"{row['megabytes']:.1f}",
        ]
        for row in rows
    ]
    return f"## Kernels of TensorRT-RTX engines, fp16, batch 1\n\n{table(columns, lines)}"


def _place(row: Row) -> tuple[Any, ...]:
    """Small networks first, mild budgets first."""
    sizes = [*CHECKPOINTS, *DYNAMIC_CHECKPOINTS]
    return (
        SYSTEMS.index(row["system"]),
        sizes.index(row["size"]),
        -row["budget"],
        row["batch_size"],
        row["engine"],
        row["threads"],
    )


def measured_on(folder: Path) -> str:
    """The machine that ``results.md`` in `folder` says its rows are from; this one where there is none."""
    path = folder / "results.md"
    line = path.read_text().splitlines()[0] if path.exists() else ""
    return line.removeprefix("Measured on ").removesuffix(".") or machine()


def main() -> None:
    """Draw again what is stored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    folder = parser.parse_args().out
    stored = {name: folder / f"{name}.json" for name in ("latency", "operators", "adaptive", "compile", "kernels")}
    rows = {name: json.loads(path.read_text()) if path.exists() else [] for name, path in stored.items()}
    write(folder, rows, measured_on(folder))


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _ratio(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{row['ratio']:.3f}"


if __name__ == "__main__":
    main()
