"""``slimc demo``: the whole way on a small, really trained checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimc.cli import options as opt

if TYPE_CHECKING:
    from slimc.cli.console import Output
    from slimc.cli.demo import DemoResult

SUMMARY = "Compile the bundled checkpoint and compare dense, masked, slim."
HELP = """Compile the bundled checkpoint, verify it, and compare the dense, masked and slim networks.

The checkpoint was searched and retrained on handwritten digits; it and 360 test digits are shipped with slimc."""
EXAMPLE = "Example: slimc demo --output demo"


@opt.expand
def command(
    printing: opt.Printing,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Keep the checkpoint and the models here; default: nothing is kept.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = None,
) -> None:
    """Run the demo."""
    from slimc.cli.demo import CHECKPOINT, IMAGE_OPTIONS, keep_checkpoint, run_demo
    from slimc.cli.results import demo_json
    from slimc.files.output import scratch

    out = printing.output()
    if output is None:
        with scratch() as directory:
            result = run_demo(directory, progress=out.progress)
            out.result("demo", demo_json(result, ()))
    else:
        replaced = keep_checkpoint(output)
        result = run_demo(output, progress=out.progress)
        reports = result.reports.values()
        replaced += [path for report in reports for path in report.replaced]
        written = [output / CHECKPOINT, *(path for report in reports for path in report.written)]
        out.result("demo", demo_json(result, replaced), outputs=written)
    _print(out, result)
    if output is not None:
        out.print(f"the checkpoint and the models are in {output}{opt.overwritten(replaced)}")
        out.print(f"try: slimc inspect {output / CHECKPOINT} {IMAGE_OPTIONS}")


def _print(out: Output, result: DemoResult) -> None:
    dense = result.reports["dense"].compiled.slim
    rows = []
    for name, report in result.reports.items():
        count, found = report.compiled.slim, report.comparison
        rows.append(
            (
                name,
                f"{result.correct[name]} / {result.digits}",
                f"{count.params:,}",
                f"{count.macs / 1e6:.1f} M",
                f"{count.macs / dense.macs:.0%}",
                f"{result.latency[name] * 1e3:.2f} ms",
                f"{result.latency[name] / result.latency['dense']:.0%}",
                "-" if found is None else f"{found.max_rel:.1e}",
            )
        )
    columns = ("network", "digits right", "parameters", "MACs", "of dense", "latency", "of dense", "error")
    out.table("ViT-Slim, searched and retrained on handwritten digits", columns, rows)
    out.print(
        "latency: median of one image in ONNX Runtime at one thread, the three networks in turns; "
        "error: largest difference from the PyTorch network, of the logits' spread"
    )
    out.print(f"masked and slim give the same answer on {result.agreement:.2%} of the digits")
