"""``slimc inspect``: what is left of a network, layer by layer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slimc.cli import options as opt
from slimc.errors import OptionError

if TYPE_CHECKING:
    from slimc.cli.console import Output
    from slimc.files.metadata import Metadata
    from slimc.files.structure import LayerStructure, Structure
    from slimc.models.options import ModelOptions, SearchedModel
    from slimc.report.structure import KeptPatches
    from slimc.report.usage import UsageReport
    from slimc.targets.count import Counts

HELP = """Show what is left of a network: heads and their widths, FFN, tokens, parameters, MACs and thresholds.

Takes a checkpoint, or an ONNX model that slimc export wrote."""
EXAMPLE = "Example: slimc inspect checkpoint.pth --plot structure.png"


def command(
    source: Annotated[Path, typer.Argument(metavar="CKPT|ONNX", help="A checkpoint, or a model that slimc wrote.")],
    plot: Annotated[Path | None, typer.Option(metavar="OUT.png", help="Draw the structure (.png, .pdf, .svg).")] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw which patches of this image every stage keeps.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="How often AdaViT uses each part on the images in this folder, and their MACs."
        ),
    ] = None,
    budget: opt.Budget = None,
    budget_attn: opt.BudgetAttn = None,
    budget_mlp: opt.BudgetMlp = None,
    budget_patch: opt.BudgetPatch = None,
    target: opt.TargetName = "generic",
    threads: opt.TunedThreads = None,
    tuning: opt.TuningFile = None,
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
    """Inspect a checkpoint or a model."""
    from slimc.cli.console import Output
    from slimc.targets.target import find_target

    budgets = opt.BudgetOptions(budget, budget_attn, budget_mlp, budget_patch)
    selection = opt.SelectionOptions(keep_rate, keep_ratios, pruning_loc, skip_lam)
    decisions = opt.DecisionOptions(ada_head, ada_token_with_mlp)
    model_options = opt.model_options(budgets, img_size, num_heads, qk_scale, selection, decisions)
    chosen = find_target(target, threads=threads, tuning=tuning)
    if plot is not None:
        from slimc.report.drawing import check_plot

        check_plot(plot)
    elif image is not None:
        raise OptionError("--image: is drawn; give --plot OUT.png too")
    out = Output(json, quiet)
    if data is not None:
        _inspect_usage(out, source, frontend_options=(model_options, ema), data=data, plot=plot)
        return
    if source.suffix == ".onnx":
        from slimc.files.metadata import read_metadata

        found = read_metadata(source)
        facts: dict[str, Any] = {"system": found.system, "variant": found.variant, **found.settings, **found.details}
        structure, dense, slim = found.structure, found.dense, found.slim
        kept = None if image is None else _kept_by_model(source, found, image)
    else:
        from slimc.compiler.export import compile_checkpoint
        from slimc.compiler.options import ExportOptions

        compiled, _ = compile_checkpoint(source, model_options, ExportOptions(target=chosen), ema=ema, step=out.step)
        searched = compiled.searched
        facts = {"system": searched.system, "variant": "slim", **searched.settings, **searched.details}
        structure, dense, slim = compiled.structure, compiled.dense, compiled.slim
        kept = None if image is None else _kept_by_network(searched, image)
    if plot is not None:
        from slimc.report.structure import plot_structure

        with out.step("drawing"):
            plot_structure(structure, (dense, slim), f"{source.name} ({facts['variant']})", plot, kept)
    shown = {} if kept is None else {"kept_patches": [patches.tolist() for patches in kept.kept]}
    out.result(
        {
            **facts,
            **shown,
            "params": _pair(dense.params, slim.params),
            "macs": _pair(dense.macs, slim.macs),
            **asdict(structure),
        }
    )
    _print(out, facts, structure, dense, slim)
    if plot is not None:
        out.print(f"wrote {plot}")


def _kept_by_model(source: Path, metadata: Metadata, image: Path) -> KeptPatches:
    """What the selections of the ONNX model `source` keep of `image`."""
    from slimc.evaluate.selections import run_selected
    from slimc.files.images import load_images, pixels
    from slimc.report.structure import KeptPatches

    if not metadata.structure.selecting:
        raise OptionError(f"--image: {source} selects no patches by the image")
    images = load_images([image], metadata.structure.image, metadata.preprocessing, "--image")
    kept = run_selected(source, images).kept
    return KeptPatches(pixels(images, metadata.preprocessing)[0], tuple(patches[0] for patches in kept))


def _kept_by_network(searched: SearchedModel, image: Path) -> KeptPatches:
    """What the selections of a checkpoint's PyTorch network keep of `image`."""
    import torch

    from slimc.files.images import load_images, pixels
    from slimc.report.structure import KeptPatches

    if searched.select is None:
        raise OptionError(f"--image: {searched.system} networks select no patches by the image")
    images = load_images([image], searched.masked.image, searched.preprocessing, "--image")
    with torch.inference_mode():
        _, kept, _ = searched.select(searched.network("masked"), torch.from_numpy(images))
    return KeptPatches(pixels(images, searched.preprocessing)[0], tuple(patches[0].numpy() for patches in kept))


def _inspect_usage(
    out: Output, source: Path, *, frontend_options: tuple[ModelOptions, bool | None], data: Path, plot: Path | None
) -> None:
    """What an AdaViT checkpoint decides on the images in `data`."""
    from slimc.compiler import load as frontend
    from slimc.compiler.adaptive import observe
    from slimc.files.images import image_files
    from slimc.report.usage import report
    from slimc.targets.count import count_macs
    from slimc.targets.target import find_target

    if source.suffix == ".onnx":
        raise OptionError(f"--data: {source} is a model; expected an AdaViT checkpoint")
    files = image_files(data)
    model_options, ema = frontend_options
    with out.step(f"reading {source.name}"):
        _, searched = frontend.load(source, model_options, ema=ema)
    if searched.observe is None:
        raise OptionError(f"--data: {searched.system} networks decide nothing for each image")
    with out.step(f"running the network on {len(files)} images"):
        usage = observe(searched, files)
    found = report(usage, searched.masked, count_macs(searched.dense, find_target("generic")))
    if plot is not None:
        from slimc.report.usage_plot import plot_usage

        with out.step("drawing"):
            plot_usage(found, searched.masked.grid, source.name, plot)
    macs = {"dense": found.macs_dense, "mean": found.mean_macs, "quantiles": found.quantiles}
    out.result({"system": searched.system, **searched.settings, **asdict(found), "macs": macs})
    _print_usage(out, found, len(searched.masked.blocks))
    if plot is not None:
        out.print(f"wrote {plot}")


def _print_usage(out: Output, found: UsageReport, blocks: int) -> None:
    rows = [
        (
            block.name,
            f"{block.attention:.0%}",
            f"{block.mlp:.0%}",
            " ".join(f"{head:.0%}" for head in block.heads),
            f"{block.patches:.0%}",
            f"{block.patches_least} to {block.patches_most}",
        )
        for block in found.blocks
    ]
    out.print(f"{found.images} images, {blocks} blocks; heads and patches where the block runs")
    out.table("", ("block", "attention", "FFN", "every head", "patches", "least to most"), rows)
    shares = [(name, f"{macs:,}", f"{macs / found.macs_dense:.3f}") for name, macs in found.quantiles.items()]
    mean = ("mean", f"{found.mean_macs:,.0f}", f"{found.mean_macs / found.macs_dense:.3f}")
    dense = ("dense", f"{found.macs_dense:,}", "1.000")
    out.print("MACs that the decisions of an image ask for, were all that is off free")
    out.table("", ("images", "MACs", "of dense"), [mean, *shares, dense])


def _pair(dense: int, slim: int) -> dict[str, int]:
    return {"dense": dense, "slim": slim}


def _print(out: Output, facts: dict[str, Any], structure: Structure, dense: Counts, slim: Counts) -> None:
    settings = "; ".join(f"{key} {_text(value)}" for key, value in facts.items() if key != "limits")
    out.print(settings)
    height, width = structure.image
    out.print(f"image {height}x{width}, grid {structure.grid[0]}x{structure.grid[1]}, dim {structure.dim}")
    columns = ("block", "head widths", "computed as", "FFN", "tokens", "keys", "ghosts", "MACs", "of dense")
    out.table("", columns, [_row(layer) for layer in structure.layers])
    if structure.selecting:
        headings = ("selection before", "patches", "kept", "predictor MACs", "of all")
        rows = [_selection_row(layer, structure.prefix, slim.macs) for layer in structure.selecting]
        out.table("", headings, rows)
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


def _selection_row(layer: LayerStructure, prefix: int, macs: int) -> tuple[str, ...]:
    return (
        layer.name,
        str(layer.tokens_before - prefix),
        str(layer.tokens - prefix),
        f"{layer.scorer_macs / 1e6:,.1f} M",
        f"{layer.scorer_macs / macs:.1%}",
    )


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {number:.6g}" if isinstance(number, float) else f"{key} {number}" for key, number in value.items()
        )
    return str(value)
