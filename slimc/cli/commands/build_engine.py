"""``slimc build-engine``: a TensorRT engine from a model or a checkpoint, proven where there is a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimc.cli import options as opt

if TYPE_CHECKING:
    from slimc.cli.console import Output
    from slimc.compiler.engine import EngineReport
    from slimc.evaluate.logits import LogitsDifference

SUMMARY = "Build a TensorRT engine from a model or a checkpoint."
HELP = """Build a TensorRT engine from an ONNX model that slimc wrote, or from a checkpoint.

TensorRT builds on the GPU it is for; TensorRT-RTX builds for any, without one. Writes MODEL.engine and a JSON that says
what it is, and compares the engine with the reference where there is a GPU."""
EXAMPLE = "Example: slimc build-engine small.onnx --precision fp16 --target sm89 -o small.engine"


@opt.expand
def command(
    model: Annotated[Path, typer.Argument(metavar="ONNX|CKPT", help="A model that slimc wrote, or a checkpoint.")],
    given: opt.Given,
    printing: opt.Printing,
    precision: opt.PrecisionOptions,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Default: the model's name with .engine, in this directory.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, tensorrt or tensorrt-rtx.")] = "auto",
    fused_attention: Annotated[
        bool, typer.Option("--fused-attention/--no-fused-attention", help="Off: keep TensorRT from fusing attention.")
    ] = True,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare with the reference where there is a GPU.")
    ] = True,
    batch_size: Annotated[int | None, typer.Option(help="Images in a batch, for a checkpoint. Default: 1.")] = None,
    outputs: opt.Outputs = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="sm75, sm80, sm86, sm89, sm120, ...; may be given several times.", rich_help_panel=opt.TARGET
        ),
    ] = None,
) -> None:
    """Build an engine from MODEL."""
    import slimc
    from slimc.backends.engine_file import facts_path
    from slimc.cli.results import engine_json

    out = printing.output()
    report = slimc.build_engine(
        model,
        output,
        precision=precision.read(),
        target=target,
        backend=backend,
        fused_attention=fused_attention,
        verify=verify,
        batch_size=batch_size,
        outputs=outputs,
        ema=given.ema,
        progress=out.progress,
        **given.options,
    )
    written = [report.engine, facts_path(report.engine), *([] if report.reference is None else [report.reference])]
    out.result(
        "build-engine", engine_json(report), inputs=opt.inputs(model, *given.files, _reference(model)), outputs=written
    )
    _print_report(out, report)


def _reference(model: Path) -> Path | None:
    """The reference beside a model, which is read and copied; none where there is none."""
    from slimc.files.reference import reference_path

    path = reference_path(model)
    return path if model.suffix == ".onnx" and path.is_file() else None


def _print_lost(out: Output, report: EngineReport) -> None:
    """Where attention is not fused, and why; in short where the model was exported for something else than a GPU."""
    reasons = [(block.name, reason) for block in report.facts.blocks for reason in block.lost]
    if reasons and report.exported_for in ("generic", "cpu") and report.facts.precision != "fp32":
        wanted = (*report.facts.targets, "sm80")[0]
        out.warn(
            f"{len(reasons)} attentions are not fused: the model was exported for {report.exported_for}; "
            f"slimc export --target {wanted} packs its heads so that they are"
        )
        return
    for reason in dict.fromkeys(reason for _, reason in reasons):
        blocks = [name for name, found in reasons if found == reason]
        out.warn(f"attention is not fused in {', '.join(dict.fromkeys(blocks))}: {reason}")


def _decisions(found: LogitsDifference | None) -> str:
    """How far logits decide alike; nothing where there are none."""
    if found is None:
        return ""
    return (
        f", top-1 agreement {found.top1_agreement:.1%}, smallest margin {found.margin:.3g} against an error of "
        f"{found.max_abs:.3g}"
    )


def _print_report(out: Output, report: EngineReport) -> None:
    facts = report.facts
    rows = [(block.name, block.kernels, f"{block.fused} of {block.attentions}") for block in facts.blocks]
    out.table(f"{facts.backend} {facts.version}, {facts.precision}", ("block", "kernels", "attention fused"), rows)
    if facts.blocks:
        in_blocks = sum(block.kernels for block in facts.blocks)
        out.print(
            f"{len(facts.kernels)} kernels, {in_blocks / len(facts.blocks):.2f} a block; attention fused in "
            f"{sum(block.fused for block in facts.blocks)} of {sum(block.attentions for block in facts.blocks)}"
        )
    _print_lost(out, report)
    for name, reason in facts.kept_float32.items():
        out.warn(f"{name} stays float32: {reason}")
    for warning in report.warnings:
        out.warn(warning)
    graph = report.graph_comparison
    if graph is not None:
        out.print(
            f"the {facts.precision} graph on the CPU: {graph.max_rel:.2e} of {graph.worst.unit} (tolerance "
            f"{graph.tolerance:.0e})" + _decisions(graph.logits)
        )
    if report.agreement is not None:
        out.print(report.agreement.describe())
    found = report.comparison
    if found is None:
        out.print(f"not compared with the reference: {report.unchecked}")
    else:
        out.print(f"verified on {found.inputs} inputs: {found.max_rel:.2e} of {found.worst.unit} ({facts.precision})")
    out.print(
        f"wrote {report.engine} ({facts.plan_bytes / 1e6:.1f} MB) for {', '.join(facts.targets) or 'SM80+'}"
        f"{opt.overwritten(report.replaced)}"
    )
