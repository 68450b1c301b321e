"""``slimc build-engine``: a TensorRT engine from a model or a checkpoint, proven where there is a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimc.cli import options as opt

if TYPE_CHECKING:
    from slimc.cli.console import Output
    from slimc.compiler.engine import EngineReport
    from slimc.emit.precision import Precision

HELP = """Build a TensorRT engine from an ONNX model that slimc wrote, or from a checkpoint.

TensorRT builds on the GPU it is for; TensorRT-RTX builds for any, without one. Writes MODEL.engine and a JSON that says
what it is, and compares the engine with the reference where there is a GPU."""
EXAMPLE = "Example: slimc build-engine small.onnx --fp16 --target sm89 -o small.engine"


def command(
    model: Annotated[Path, typer.Argument(metavar="ONNX|CKPT", help="A model that slimc wrote, or a checkpoint.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: the model with .engine.")] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Matrix products in float16.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Matrix products in bfloat16 (SM80 and newer).")] = False,
    backend: Annotated[str, typer.Option(help="auto, tensorrt or tensorrt-rtx.")] = "auto",
    target: Annotated[
        list[str] | None, typer.Option(help="sm75, sm80, sm86, sm89, sm120, ...; may be given several times.")
    ] = None,
    fused_attention: Annotated[
        bool, typer.Option("--fused-attention/--no-fused-attention", help="Off: keep TensorRT from fusing attention.")
    ] = True,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare with the reference where there is a GPU.")
    ] = True,
    batch_size: Annotated[int, typer.Option(help="Images in a batch, for a checkpoint.")] = 1,
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
    """Build an engine from MODEL."""
    from slimc.cli.console import Output

    precision = opt.precision(fp16, bf16)
    model_options = opt.model_options(
        opt.BudgetOptions(budget, budget_attn, budget_mlp, budget_patch),
        img_size,
        num_heads,
        qk_scale,
        opt.SelectionOptions(keep_rate, keep_ratios, pruning_loc, skip_lam),
        opt.DecisionOptions(ada_head, ada_token_with_mlp),
    )

    from slimc.compiler.engine import EngineOptions, build_engine, build_from_checkpoint

    out = Output(json, quiet)
    options = EngineOptions(backend, tuple(name.lower() for name in target or ()), precision, fused_attention, verify)
    path = Path(model.name.removesuffix(".tar")).with_suffix(".engine") if output is None else output
    if model.suffix == ".onnx":
        report = build_engine(model, path, options, step=out.step)
    else:
        report = build_from_checkpoint(
            model, path, options, model_options, batch_size=batch_size, ema=ema, step=out.step
        )
    out.result(_to_json(report))
    _print_report(out, report, precision)


def _to_json(report: EngineReport) -> dict[str, object]:
    from dataclasses import asdict

    from slimc.backends.engine_file import facts_path
    from slimc.evaluate.logits import summary

    facts = asdict(report.facts)
    facts.pop("kernels")
    found = report.comparison
    return {
        "engine": str(report.engine),
        "description": str(facts_path(report.engine)),
        **facts,
        "kernels": len(report.facts.kernels),
        "verify": None if found is None else summary(found),
        "verify_graph": None if report.graph_comparison is None else summary(report.graph_comparison),
        **({} if report.agreement is None else {report.agreement.key: asdict(report.agreement)}),
        "unchecked": report.unchecked or None,
    }


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


def _print_report(out: Output, report: EngineReport, precision: Precision) -> None:
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
    graph = report.graph_comparison
    if graph is not None:
        out.print(
            f"the {facts.precision} graph on the CPU: {graph.max_rel:.2e} of the logits' spread (tolerance "
            f"{graph.tolerance:.0e}), top-1 agreement {graph.top1_agreement:.1%}, smallest margin {graph.margin:.3g} "
            f"against an error of {graph.max_abs:.3g}"
        )
    if report.agreement is not None:
        out.print(report.agreement.describe())
    found = report.comparison
    if found is None:
        out.print(f"not compared with the reference: {report.unchecked}")
    else:
        out.print(f"verified on {found.inputs} inputs: {found.max_rel:.2e} of the logits' spread ({precision})")
    out.print(f"wrote {report.engine} ({facts.plan_bytes / 1e6:.1f} MB) for {', '.join(facts.targets) or 'SM80+'}")
