"""``slimc tune``: measure what heads and groups of heads cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimc.cli import options as opt

HELP = """Measure on this machine what heads cost alone and in groups, for slimc export --target cpu --tuning FILE.

slimc ships such measurements; those of the machine that will run the model are better. Leave it alone meanwhile."""
EXAMPLE = (
    "Example: slimc tune --threads 2 -o tuning.json && slimc export checkpoint.pth --target cpu --tuning tuning.json"
)


def command(
    threads: Annotated[int, typer.Option(help="Threads that will run the model.")] = 1,
    backend: Annotated[str, typer.Option(help="onnxruntime or openvino.")] = "onnxruntime",
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("tuning.json"),
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Measure, and write OUTPUT."""
    from dataclasses import asdict

    from slimc.backends import cores
    from slimc.cli.console import Output
    from slimc.errors import OptionError
    from slimc.evaluate.latency import load_warning
    from slimc.evaluate.tune import describe, measure_costs, write_tuning
    from slimc.files.output import check_writable

    if backend not in ("onnxruntime", "openvino"):
        raise OptionError(f"--backend: {backend!r} is no CPU back end; expected onnxruntime or openvino")
    if threads < 1:
        raise OptionError(f"--threads: {threads} threads cannot run anything; expected at least 1")
    check_writable(output)
    out = Output(json, quiet)
    doubts = [] if (busy := load_warning()) is None else [busy]
    if 0 < len(cores.usable()) < threads:
        doubts.append(
            f"{threads} threads share {len(cores.usable())} core(s): a machine with as many will cost otherwise"
        )
    with out.progress(f"timing attentions, threads: {threads}") as advance:
        tuning = measure_costs(backend, threads, advance)  # type: ignore[arg-type]
    write_tuning(tuning, output)
    out.result({**asdict(tuning), "output": str(output), "warnings": doubts})
    out.table("", (tuning.library, f"threads: {threads}"), describe(tuning.costs))
    out.print(f"fits {tuning.sections} attentions to {tuning.error:.1%} (root mean square)")
    out.print(f"wrote {output}")
    for doubt in doubts:
        out.warn(doubt)
