"""``slimc bench``: latencies side by side, and how much of a cut in arithmetic became time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimc.cli import options as opt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slimc.cli.console import Output
    from slimc.evaluate.latency import Measurement, Realised

SUMMARY = "Time models, engines and checkpoints side by side."
HELP = """Time models, engines and checkpoints in interleaved rounds.

A checkpoint is compared with itself: dense, masked and slim, with the realised share of the cut in arithmetic,
(1 - t_slim / t_dense) / (1 - MACs_slim / MACs_dense)."""
EXAMPLE = "Example: slimc bench checkpoint.pth --backend onnxruntime --backend openvino --threads 1 --plot latency.png"


_Csv = Annotated[
    Path | None, typer.Option(metavar="OUT.csv", help="Write the figures as a table.", rich_help_panel=opt.OUTPUT)
]


@opt.expand
def command(
    sources: Annotated[list[Path], typer.Argument(metavar="ARTIFACT|CKPT...", help="What to time.")],
    given: opt.Given,
    printing: opt.Printing,
    precision: opt.PrecisionOptions,
    plotting: opt.Plotting,
    backend: opt.Backends = None,
    threads: opt.Threads = None,
    seconds: Annotated[float, typer.Option(help="Time to spend on each network, warming up included.")] = 3.0,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="For checkpoints; may be given several times. Default: 1.")
    ] = None,
    target: opt.CheckpointTarget = None,
    tuning: opt.TuningFile = None,
    outputs: opt.Outputs = None,
    csv: _Csv = None,
) -> None:
    """Time SOURCES."""
    import slimc
    from slimc.cli.results import bench_json
    from slimc.evaluate.latency import machine_warnings, realised, warnings
    from slimc.files.output import check_output

    if csv is not None:
        check_output(csv, (".csv",), "--csv")
    drawn = plotting.read()
    out, plot = printing.output(), plotting.plot
    doubts = machine_warnings(threads)
    measurements = slimc.bench(
        sources,
        backend=backend or "auto",
        threads=threads,
        batch_size=batch_size,
        seconds=seconds,
        target=target,
        tuning=tuning,
        precision=precision.read(),
        outputs=outputs,
        ema=given.ema,
        progress=out.progress,
        **given.options,
    )
    shares = realised(measurements)
    doubts += warnings(measurements)
    written, replaced = _outputs(csv, plot)
    if csv is not None:
        _write_csv(measurements, csv)
    if plot is not None:
        from slimc.report.latency import plot_latencies

        plot_latencies(measurements, plot, drawn)
    out.result(
        "bench",
        bench_json(measurements, shares, doubts, replaced),
        inputs=opt.inputs(*sources, *given.files, tuning),
        outputs=written,
    )
    _print_report(out, measurements, shares)
    for doubt in doubts:
        out.warn(doubt)
    if written:
        out.print(f"wrote {' and '.join(map(str, written))}{opt.overwritten(replaced)}")


def _outputs(*paths: Path | None) -> tuple[list[Path], list[Path]]:
    """Those of `paths` that are asked for, and those of them that are there already."""
    written = [path for path in paths if path is not None]
    return written, [path for path in written if path.exists()]


def _print_report(out: Output, measurements: Sequence[Measurement], shares: Sequence[Realised]) -> None:
    figures = [m.summary(measurements[0]) for m in measurements]
    facts = {
        "back end": [m.subject.session.backend for m in measurements],
        "batch": [str(m.subject.batch_size) for m in measurements],
        "precision": [m.subject.precision or "?" for m in measurements],
        "target": [m.subject.target or "?" for m in measurements],
        "threads": ["default" if m.subject.threads is None else str(m.subject.threads) for m in measurements],
    }
    shared = {name: values[0] for name, values in facts.items() if len(set(values)) == 1}
    columns = {name: values for name, values in facts.items() if name not in shared}
    out.print(", ".join(f"{name} {value}" for name, value in shared.items()))
    rows = [
        (
            m.subject.label or m.subject.name,
            *(values[i] for values in columns.values()),
            f"{m.median * 1e3:.3f}",
            f"{row['ratio_to_first']:.3f}",
            *("-" if row[tail] is None else f"{row[tail]:.3f}" for tail in ("p90_ms", "p99_ms")),
            f"{row['min_ms']:.3f}",
            f"{m.variation:.1%}",
            f"{m.throughput:.1f}",
            str(len(m.latencies)),
        )
        for i, (m, row) in enumerate(zip(measurements, figures, strict=True))
    ]
    timed = ("median ms", "of first", "p90 ms", "p99 ms", "min ms", "variation", "images/s", "runs")
    out.table("", ("network", *columns, *timed), rows)
    for share in shares:
        realised = "no cut in MACs" if share.share is None else f"realised share {share.share:.1%} of the cut in MACs"
        out.print(
            f"{share.family}: slim is {share.speedup.median:.2f}x as fast as dense (rounds: {share.speedup.low:.2f} to "
            f"{share.speedup.high:.2f}) with {share.macs_ratio:.1%} of its MACs: {realised}"
        )


def _write_csv(measurements: Sequence[Measurement], path: Path) -> None:
    import csv

    from slimc.files.output import replacing

    rows = [m.summary(measurements[0]) for m in measurements]
    with replacing(path) as (temporary,), temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
