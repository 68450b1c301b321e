"""``slimc export``: a searched checkpoint becomes a small ONNX model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimc.cli import options as opt

if TYPE_CHECKING:
    from slimc.cli.console import Output
    from slimc.compiler.export import ExportReport

HELP = """Compile a searched checkpoint into a small, exact, static-shape ONNX model.

Writes MODEL.onnx and MODEL.reference.npz (inputs with the PyTorch network's outputs) after comparing the two networks."""
EXAMPLE = "Example: slimc export checkpoint.pth -o small.onnx --batch-size 1 --target cpu"


def command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="A .pth, .pth.tar, .pt or .safetensors file.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: CKPT with the suffix .onnx.")] = None,
    budget: opt.Budget = None,
    budget_attn: opt.BudgetAttn = None,
    budget_mlp: opt.BudgetMlp = None,
    budget_patch: opt.BudgetPatch = None,
    batch_size: Annotated[int, typer.Option(help="Images in a batch; the model's shapes are static.")] = 1,
    dense: Annotated[
        bool, typer.Option("--dense", help="Emit the network with every mask at one: a baseline.")
    ] = False,
    masked: Annotated[
        bool, typer.Option("--masked", help="Emit the network with its masks as multiplications.")
    ] = False,
    opset: Annotated[
        int | None, typer.Option(help="ONNX opset, 17 to 23. Default: 17, read by the most runtimes; 23 for cpu.")
    ] = None,
    target: opt.TargetName = "generic",
    threads: opt.TunedThreads = None,
    tuning: opt.TuningFile = None,
    precision: Annotated[str, typer.Option(help="Of the matrix products: fp32, fp16 or bf16.")] = "fp32",
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Compare with the PyTorch network.")] = True,
    data: opt.Data = None,
    check_passes: Annotated[
        bool, typer.Option("--check-passes", help="Check every pass in float64, to 1e-9. Takes a while.")
    ] = False,
    ema: opt.Ema = None,
    img_size: opt.ImgSize = None,
    num_heads: opt.NumHeads = None,
    qk_scale: opt.QkScale = None,
    keep_rate: opt.KeepRate = None,
    keep_ratios: opt.KeepRatios = None,
    pruning_loc: opt.PruningLoc = None,
    skip_lam: opt.SkipLam = None,
    adaptive: opt.AdaptiveWay = None,
    capacity_quantile: opt.CapacityQuantile = None,
    ada_head: opt.AdaHead = None,
    ada_token_with_mlp: opt.AdaTokenWithMlp = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Compile CKPT."""
    from slimc.cli.console import Output
    from slimc.errors import OptionError

    if dense and masked:
        raise OptionError("--dense and --masked: give one of them, or neither for the slim network")
    budgets = opt.BudgetOptions(budget, budget_attn, budget_mlp, budget_patch)
    selection = opt.SelectionOptions(keep_rate, keep_ratios, pruning_loc, skip_lam)
    decisions = opt.DecisionOptions(ada_head, ada_token_with_mlp)
    model_options = opt.model_options(budgets, img_size, num_heads, qk_scale, selection, decisions)

    from slimc.compiler.adaptive import parse
    from slimc.compiler.export import export
    from slimc.compiler.options import ExportOptions
    from slimc.emit.precision import find_precision
    from slimc.targets.target import find_target

    out = Output(json, quiet)
    if adaptive is not None and (dense or masked):
        raise OptionError("--adaptive: compiles the slim network; leave out --dense and --masked")
    if capacity_quantile is not None and adaptive is None:
        raise OptionError("--capacity-quantile: needs --adaptive capacity")
    report = export(
        checkpoint,
        default_output(checkpoint) if output is None else output,
        model_options,
        ExportOptions(
            variant="dense" if dense else "masked" if masked else "slim",
            batch_size=batch_size,
            opset=opset,
            target=find_target(target, threads=threads, tuning=tuning),
            precision=find_precision(precision),
            verify=verify,
            check_passes=check_passes,
            data=data,
            adaptive=None if adaptive is None else parse(adaptive, capacity_quantile),
        ),
        ema=ema,
        step=out.step,
    )
    out.result(report.to_json())
    _print_report(out, report)


def default_output(checkpoint: Path) -> Path:
    """``checkpoint.onnx`` in the current directory for ``.../checkpoint.pth.tar``."""
    name = checkpoint.name.removesuffix(".tar")
    return Path(Path(name).with_suffix(".onnx").name)


def _print_report(out: Output, report: ExportReport) -> None:
    compiled = report.compiled
    dense, slim = compiled.dense, compiled.slim
    out.table(
        "",
        ("", "dense", "emitted", "ratio"),
        [
            ("parameters", f"{dense.params:,}", f"{slim.params:,}", f"{slim.params / dense.params:.3f}"),
            ("MACs per image", f"{dense.macs:,}", f"{slim.macs:,}", f"{slim.macs / dense.macs:.3f}"),
        ],
    )
    found = report.comparison
    if found is not None:
        out.print(
            f"verified on {found.inputs} inputs: max abs {found.max_abs:.2e}, {found.max_rel:.2e} of the logits' spread "
            f"(tolerance {found.tolerance:.0e}), cosine {found.cosine:.9f}, top-1 agreement {found.top1_agreement:.1%}, "
            f"worst input {found.worst_input}"
        )
    if report.agreement is not None:
        out.print(report.agreement.describe())
    if compiled.pass_errors is not None:
        worst = max(compiled.pass_errors.values())
        out.print(f"passes checked in float64: largest difference {worst:.2e}")
    spent = ", ".join(f"{name} {seconds:.2f}" for name, seconds in report.seconds.items())
    out.print(f"seconds: {spent}")
    out.print(f"wrote {report.onnx} and {report.reference}")
