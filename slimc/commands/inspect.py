"""``slimc inspect``: what is left of a network, layer by layer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slimc.commands import options as opt

if TYPE_CHECKING:
    from slimc.console import Output
    from slimc.count import Counts
    from slimc.structure import LayerStructure, Structure

HELP = """Show what is left of a network: heads and their widths, FFN, tokens, parameters, MACs and thresholds.

Takes a checkpoint, or an ONNX model that slimc export wrote."""
EXAMPLE = "Example: slimc inspect checkpoint.pth --plot structure.png"


def command(
    source: Annotated[Path, typer.Argument(metavar="CKPT|ONNX", help="A checkpoint, or a model that slimc wrote.")],
    plot: Annotated[Path | None, typer.Option(metavar="OUT.png", help="Draw the structure (.png, .pdf, .svg).")] = None,
    budget: opt.Budget = None,
    budget_attn: opt.BudgetAttn = None,
    budget_mlp: opt.BudgetMlp = None,
    budget_patch: opt.BudgetPatch = None,
    target: opt.TargetName = "generic",
    ema: opt.Ema = None,
    img_size: opt.ImgSize = None,
    num_heads: opt.NumHeads = None,
    qk_scale: opt.QkScale = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Inspect a checkpoint or a model."""
    from slimc.console import Output
    from slimc.target import find_target

    budgets = opt.BudgetOptions(budget, budget_attn, budget_mlp, budget_patch)
    model_options = opt.model_options(budgets, img_size, num_heads, qk_scale)
    chosen = find_target(target)
    if plot is not None:
        from slimc.plot import check_plot

        check_plot(plot)
    out = Output(json, quiet)
    if source.suffix == ".onnx":
        from slimc.metadata import read_metadata

        found = read_metadata(source)
        facts: dict[str, Any] = {"system": found.system, "variant": found.variant, **found.settings, **found.details}
        structure, dense, slim = found.structure, found.dense, found.slim
    else:
        from slimc.export import ExportOptions, compile_checkpoint

        compiled, _ = compile_checkpoint(source, model_options, ExportOptions(target=chosen), ema=ema, step=out.step)
        searched = compiled.searched
        facts = {"system": searched.system, "variant": "slim", **searched.settings, **searched.details}
        structure, dense, slim = compiled.structure, compiled.dense, compiled.slim
    if plot is not None:
        from slimc.plot import plot_structure

        with out.step("drawing"):
            plot_structure(structure, f"{source.name} ({facts['variant']})", plot)
    out.result(
        {**facts, "params": _pair(dense.params, slim.params), "macs": _pair(dense.macs, slim.macs), **asdict(structure)}
    )
    _print(out, facts, structure, dense, slim)
    if plot is not None:
        out.print(f"wrote {plot}")


def _pair(dense: int, slim: int) -> dict[str, int]:
    return {"dense": dense, "slim": slim}


def _print(out: Output, facts: dict[str, Any], structure: Structure, dense: Counts, slim: Counts) -> None:
    settings = "; ".join(f"{key} {_text(value)}" for key, value in facts.items())
    out.print(settings)
    height, width = structure.image
    out.print(f"image {height}x{width}, grid {structure.grid[0]}x{structure.grid[1]}, dim {structure.dim}")
    columns = ("block", "head widths", "computed as", "FFN", "tokens", "keys", "ghosts", "MACs", "of dense")
    out.table("", columns, [_row(layer) for layer in structure.layers])
    out.table(
        "",
        ("", "dense", "slim", "ratio"),
        [
            ("parameters", f"{dense.params:,}", f"{slim.params:,}", f"{slim.params / dense.params:.3f}"),
            ("MACs per image", f"{dense.macs:,}", f"{slim.macs:,}", f"{slim.macs / dense.macs:.3f}"),
        ],
    )


def _row(layer: LayerStructure) -> tuple[str, ...]:
    share = layer.macs / layer.macs_dense if layer.macs_dense else 0.0
    return (
        layer.name,
        " ".join(map(str, layer.heads)),
        _groups(layer.groups),
        str(layer.hidden or "constant"),
        f"{layer.tokens} -> {layer.tokens_out}",
        str(layer.keys),
        str(layer.ghosts),
        f"{layer.macs / 1e6:,.1f} M",
        f"{share:.2f}",
    )


def _groups(groups: tuple[tuple[int, int], ...]) -> str:
    if not groups:
        return "constant"
    if all(heads == 1 for heads, _ in groups):
        return "one by one"
    return " + ".join(f"{heads}x{width}" for heads, width in groups)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {number:.6g}" if isinstance(number, float) else f"{key} {number}" for key, number in value.items()
        )
    return str(value)
