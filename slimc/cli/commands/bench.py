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

HELP = """Time models, engines and checkpoints in interleaved rounds.

A checkpoint is compared with itself: dense, masked and slim, with the realised share of the cut in arithmetic,
(1 - t_slim / t_dense) / (1 - MACs_slim / MACs_dense)."""
EXAMPLE = "Example: slimc bench checkpoint.pth --backend onnxruntime --backend openvino --threads 1 --plot latency.png"


def command(
    sources: Annotated[list[Path], typer.Argument(metavar="ARTIFACT|CKPT...", help="What to time.")],
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help=f"May be given several times: {opt.BACKEND_HELP} For checkpoints also tensorrt, tensorrt-rtx."
        ),
    ] = None,
    threads: opt.Threads = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="For checkpoints; may be given several times. Default: 1.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time to spend on each network, at least.")] = 3.0,
    target: Annotated[str | None, typer.Option(help="For checkpoints. Default: what suits the back end.")] = None,
    tuning: opt.TuningFile = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Compile checkpoints in float16.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compile checkpoints in bfloat16.")] = False,
    csv: Annotated[Path | None, typer.Option(metavar="OUT.csv", help="Write the figures as a table.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="OUT.png", help="Draw the latencies (.png, .pdf, .svg).")] = None,
    budget: opt.Budget = None,
    budget_attn: opt.BudgetAttn = None,
    budget_mlp: opt.BudgetMlp = None,
    budget_patch: opt.BudgetPatch = None,
    ema: opt.Ema = None,
    img_size: opt.ImgSize = None,
    num_heads: opt.NumHeads = None,
    qk_scale: opt.QkScale = None,
    keep_rate: opt.KeepRate = None,
    keep_ratios: opt.KeepRatios = None,
    pruning_loc: opt.PruningLoc = None,
    skip_lam: opt.SkipLam = None,
    ada_head: opt.AdaHead = None,
    ada_token_with_mlp: opt.AdaTokenWithMlp = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Time SOURCES."""
    import tempfile

    from slimc.cli.console import Output
    from slimc.compiler.variants import BenchOptions, subjects
    from slimc.evaluate.latency import load_warning, measure, realised, warnings

    model_options = opt.model_options(
        opt.BudgetOptions(budget, budget_attn, budget_mlp, budget_patch),
        img_size,
        num_heads,
        qk_scale,
        opt.SelectionOptions(keep_rate, keep_ratios, pruning_loc, skip_lam),
        opt.DecisionOptions(ada_head, ada_token_with_mlp),
    )
    _check_outputs(csv, plot)
    out = Output(json, quiet)
    options = BenchOptions(
        backends=tuple(backend or ("auto",)),
        threads=threads,
        batch_sizes=tuple(batch_size or ()),
        target=target,
        tuning=tuning,
        precision=opt.precision(fp16, bf16),
        model_options=model_options,
        ema=ema,
    )
    busy = load_warning()
    with tempfile.TemporaryDirectory(prefix="slimc-") as directory:
        found = subjects(sources, options, Path(directory), out.step)
        with out.step(f"timing {len(found)} networks, {seconds:g} s each"):
            measurements = measure(found, seconds)
    shares, doubts = realised(measurements), [*([busy] if busy else []), *warnings(measurements)]
    out.result(
        {
            "networks": [m.summary() for m in measurements],
            "realised": [_to_json(share) for share in shares],
            "warnings": doubts,
        }
    )
    _print_report(out, measurements, shares)
    for doubt in doubts:
        out.warn(doubt)
    if csv is not None:
        _write_csv(measurements, csv)
        out.print(f"wrote {csv}")
    if plot is not None:
        from slimc.report.latency import plot_latencies

        plot_latencies(measurements, plot)
        out.print(f"wrote {plot}")


def _check_outputs(csv: Path | None, plot: Path | None) -> None:
    """Find out before minutes of timing whether the results can be written."""
    if csv is not None:
        from slimc.files.output import check_writable

        check_writable(csv)
    if plot is not None:
        from slimc.report.drawing import check_plot

        check_plot(plot)


def _to_json(share: Realised) -> dict[str, object]:
    return {
        "family": share.family,
        "speedup": share.speedup.median,
        "speedup_p10": share.speedup.low,
        "speedup_p90": share.speedup.high,
        "macs_ratio": share.macs_ratio,
        "realised_share": share.share,
    }


def _print_report(out: Output, measurements: Sequence[Measurement], shares: Sequence[Realised]) -> None:
    rows = [
        (
            m.subject.name,
            *(f"{value * 1e3:.3f}" for value in (m.median, m.percentile(90), m.percentile(99), m.latencies.min())),
            f"{m.variation:.1%}",
            f"{m.throughput:.1f}",
            str(len(m.latencies)),
        )
        for m in measurements
    ]
    out.table("", ("", "median ms", "p90 ms", "p99 ms", "min ms", "variation", "images/s", "runs"), rows)
    for share in shares:
        realised = "no cut in MACs" if share.share is None else f"realised share {share.share:.1%} of the cut in MACs"
        out.print(
            f"{share.family}: slim is {share.speedup.median:.2f}x as fast as dense (rounds: {share.speedup.low:.2f} to "
            f"{share.speedup.high:.2f}) with {share.macs_ratio:.1%} of its MACs: {realised}"
        )


def _write_csv(measurements: Sequence[Measurement], path: Path) -> None:
    import csv

    from slimc.files.output import replacing

    rows = [m.summary() for m in measurements]
    with replacing(path) as (temporary,), temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
