"""``slimc export``: a searched checkpoint becomes a small ONNX model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimc.cli import options as opt

if TYPE_CHECKING:
    from slimc.cli.console import Output
    from slimc.compiler.export import ExportReport

SUMMARY = "Compile a checkpoint into a small, verified ONNX model."
HELP = """Compile a searched checkpoint into a small, exact, static-shape ONNX model.

Writes MODEL.onnx and MODEL.reference.npz (inputs with the PyTorch network's outputs) after comparing the two networks.
With -o MODEL.safetensors it writes a slim file, which every command takes instead of the checkpoint."""
EXAMPLE = "Example: slimc export checkpoint.pth -o small.onnx --batch-size 1 --target cpu"


_Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="MODEL.onnx, or MODEL.safetensors for a slim file. Default: CKPT's name with .onnx, in this directory.",
        rich_help_panel=opt.OUTPUT,
    ),
]


@opt.expand
def command(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="A .pth, .pth.tar, .pt or .safetensors file, or a folder.")
    ],
    given: opt.Given,
    printing: opt.Printing,
    aim: opt.ModelTarget,
    precision: opt.PrecisionOptions,
    adaptive: opt.AdaptiveOptions,
    output: _Output = None,
    batch_size: Annotated[int, typer.Option(help="Images in a batch; the model's shapes are static.")] = 1,
    dense: Annotated[
        bool, typer.Option("--dense", help="Emit the network with every mask at one: a baseline.")
    ] = False,
    masked: Annotated[
        bool, typer.Option("--masked", help="Emit the network with its masks as multiplications.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Compare with the PyTorch network.")] = True,
    data: opt.Data = None,
    outputs: opt.Outputs = None,
    check_passes: Annotated[
        bool, typer.Option("--check-passes", help="Check every pass in float64, to 1e-9. Takes a while.")
    ] = False,
    opset: Annotated[
        int | None,
        typer.Option(
            help="ONNX opset, 17 to 23. Default: 17, read by the most runtimes; 23 for cpu.", rich_help_panel=opt.TARGET
        ),
    ] = None,
) -> None:
    """Compile CKPT."""
    import slimc
    from slimc.errors import OptionError
    from slimc.files.output import default_output

    if dense and masked:
        raise OptionError("--dense and --masked: give one of them, or neither for the slim network")
    if dense:
        given.refuse_budgets("--dense keeps everything; leave one of them out")
    out = printing.output()
    report = slimc.export(
        checkpoint,
        default_output(checkpoint, ".onnx") if output is None else output,
        **aim.arguments(),
        variant="dense" if dense else "masked" if masked else "slim",
        batch_size=batch_size,
        precision=precision.read() or "fp32",
        opset=opset,
        adaptive=adaptive.read(),
        data=data,
        outputs=outputs,
        verify=verify,
        check_passes=check_passes,
        ema=given.ema,
        progress=out.progress,
        **given.options,
    )
    from slimc.cli.results import export_json

    network = report.compiled.network
    read = {**opt.checkpoint_inputs(checkpoint, network.sha256), **opt.inputs(*given.files, aim.tuning)}
    out.result("export", export_json(report), inputs=read, outputs=report.written)
    _print_report(out, report)
    for name, reason in report.kept_float32.items():
        out.warn(f"{name} stays float32: {reason}")
    for warning in (*network.warnings, *report.warnings):
        out.warn(warning)


def _print_report(out: Output, report: ExportReport) -> None:
    compiled = report.compiled
    dense, slim = compiled.dense, compiled.slim
    out.table(
        "",
        ("", "dense", "emitted", "of dense"),
        [
            ("parameters", f"{dense.params:,}", f"{slim.params:,}", f"{slim.params / dense.params:.1%}"),
            ("MACs per image", f"{dense.macs:,}", f"{slim.macs:,}", f"{slim.macs / dense.macs:.1%}"),
        ],
    )
    found = report.comparison
    if found is not None:
        where = f"image {report.worst_file}" if report.worst_file else f"input {found.worst_input}"
        out.print(
            f"verified on {found.inputs} inputs: max abs {found.max_abs:.2e}, {found.max_rel:.2e} of {found.worst.unit} "
            f"(tolerance {found.tolerance:.0e}), cosine {found.cosine:.9f}, worst on {where}"
        )
        if len(found.outputs) > 1:
            out.print(f"of their spreads: {', '.join(f'{each.output} {each.max_rel:.2e}' for each in found.outputs)}")
        if found.logits is not None:
            unmasked = compiled.options.variant == "dense" or compiled.network.masked is compiled.network.dense
            masks = "" if unmasked else " under its masks"
            doubt = "" if report.accuracy is not None else ": no statement about labels"
            out.print(f"top-1 agreement {found.top1_agreement:.1%} with the PyTorch network{masks}{doubt}")
    if report.accuracy is not None:
        pytorch, model = report.accuracy.pytorch, report.accuracy.model
        out.print(
            f"accuracy on {model.images} labelled images: top-1 {model.top1:.2%}, top-5 {model.top5:.2%}, loss "
            f"{model.loss:.4f}; the PyTorch network's {pytorch.top1:.2%}, {pytorch.top5:.2%}, {pytorch.loss:.4f}"
        )
    if report.agreement is not None:
        out.print(report.agreement.describe())
    if compiled.pass_errors is not None:
        worst = max(compiled.pass_errors.values())
        out.print(f"passes checked in float64: largest difference {worst:.2e}")
    spent = ", ".join(f"{name} {milliseconds / 1e3:.2f}" for name, milliseconds in report.milliseconds.items())
    out.print(f"seconds: {spent}")
    written = report.onnx if report.reference is None else f"{report.onnx} and {report.reference}"
    out.print(f"wrote {written}{opt.overwritten(report.replaced)}")
