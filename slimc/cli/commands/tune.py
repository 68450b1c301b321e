"""``slimc tune``: measure what heads and groups of heads cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimc.cli import options as opt

SUMMARY = "Measure what heads cost on this CPU, for --tuning."
HELP = """Measure on this machine what heads cost alone and in groups, for slimc export --target cpu --tuning FILE.

slimc ships such measurements; those of the machine that will run the model are better. Leave it alone meanwhile."""
EXAMPLE = (
    "Example: slimc tune --threads 2 -o tuning.json && slimc export checkpoint.pth --target cpu --tuning tuning.json"
)


@opt.expand
def command(
    printing: opt.Printing,
    threads: Annotated[int, typer.Option(help="Threads that will run the model.")] = 1,
    backend: Annotated[str, typer.Option(help="onnxruntime or openvino.")] = "onnxruntime",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .json file to write.", rich_help_panel=opt.OUTPUT)
    ] = Path("tuning.json"),
) -> None:
    """Measure, and write OUTPUT."""
    import slimc
    from slimc.cli.results import tune_json
    from slimc.evaluate.latency import machine_warnings
    from slimc.evaluate.tune import describe

    out = printing.output()
    doubts = machine_warnings(threads)
    replaced = [output] if output.exists() else []
    tuning = slimc.tune(output, threads=threads, backend=backend, progress=out.progress)
    out.result("tune", tune_json(tuning, output, doubts, replaced), outputs=[output])
    out.table("", (tuning.library, f"threads: {threads}"), describe(tuning.costs))
    out.print(f"fits {tuning.sections} attentions to {tuning.error:.1%} (root mean square)")
    out.print(f"wrote {output}{opt.overwritten(replaced)}")
    for doubt in doubts:
        out.warn(doubt)
