"""``slimc inspect``: what is left of a network, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimc.cli import options as opt
from slimc.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slimc.cli.console import Output
    from slimc.cli.inspection import Inspection
    from slimc.files.structure import LayerStructure
    from slimc.report.gate_usage import UsageReport

SUMMARY = "Show what is left of a network, layer by layer."
HELP = """Show what is left of a network: heads and their widths, FFN, tokens, parameters, MACs and thresholds.

Takes a checkpoint, or an ONNX model that slimc export wrote."""
EXAMPLE = "Example: slimc inspect checkpoint.pth --plot structure.png"
_LEGEND = (
    ("head widths", "channels that every head keeps, in the order of the checkpoint; 0 is a head that is gone"),
    ("computed as", "attentions in one product: heads x their width, narrower heads padded to it"),
    ("tokens", "rows that enter the block's attention -> rows that go on"),
    ("keys", "rows that attention looks at"),
    ("ghosts", "masked tokens, of which nothing is left but their number in the softmax's denominator"),
)


_Panels = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Draw this panel only: heads, ffn, tokens, macs, patches, selections; with --data branches, heads, "
        "patches, macs. May be given several times.",
        rich_help_panel=opt.OUTPUT,
    ),
]


@opt.expand
def command(
    source: Annotated[Path, typer.Argument(metavar="CKPT|ONNX", help="A checkpoint, or a model that slimc wrote.")],
    given: opt.Given,
    printing: opt.Printing,
    aim: opt.ModelTarget,
    plotting: opt.Plotting,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --plot: also draw which patches of this image every stage keeps.",
            rich_help_panel="DynamicViT",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="How often each part is used on the images in this folder, and their MACs.",
            rich_help_panel="AdaViT",
        ),
    ] = None,
    plot_panel: _Panels = None,
    outputs: opt.Outputs = None,
) -> None:
    """Inspect a checkpoint or a model."""
    from slimc.cli.inspection import Picture, inspect_checkpoint, inspect_model, inspect_usage, panels
    from slimc.cli.results import names

    out, plot = printing.output(), plotting.plot
    if image is not None and plot is None:
        raise OptionError("--image: is drawn; give --plot OUT.png too")
    if image is not None and plot_panel and "selections" not in plot_panel:
        raise OptionError("--image: is drawn in the panel selections, which --plot-panel leaves out")
    available = panels(usage=data is not None, image=image is not None) if plot is not None else ()
    drawn = plotting.read(plot_panel or (), available)
    picture = None if plot is None or drawn is None else Picture(plot, drawn, image)
    if data is not None:
        given_here = {**aim.said(), "--image": image, "--outputs": outputs}
        opt.refuse(given_here, source, "is run on images and not compiled, with --data")
        found = inspect_usage(source, given.options, given.ema, data, picture, out.progress)
    elif source.suffix == ".onnx":
        given.refuse(source, "is compiled already; its options are those it was exported with")
        given_here = {**aim.said(), "--outputs": outputs}
        opt.refuse(given_here, source, "is compiled already; its options are those it was exported with")
        found = inspect_model(source, picture, out.progress)
    else:
        how = {**aim.arguments(), "outputs": outputs}
        found = inspect_checkpoint(source, given.options, given.ema, how, picture, out.progress)
    written = [] if plot is None else [plot]
    values = {**found.values, "replaced": names(found.replaced)}
    read = {**opt.checkpoint_inputs(source, found.sha256), **opt.inputs(*given.files, aim.tuning, image)}
    out.result("inspect", values, inputs=read, outputs=written)
    if found.usage is not None:
        _print_usage(out, found.usage)
    else:
        _print(out, found)
    for warning in found.warnings:
        out.warn(warning)
    if plot is not None:
        out.print(f"wrote {plot}{opt.overwritten(found.replaced)}")


def _print(out: Output, found: Inspection) -> None:
    structure, dense, slim = found.structure, found.dense, found.slim
    height, width = structure.image
    out.print(f"{found.title}, {found.variant}")
    for name, text in found.facts:
        out.print(f"{name}: {text}")
    out.print(
        f"image: {height}x{width} pixels, {structure.grid[0]}x{structure.grid[1]} patches; embedding width {structure.dim}"
    )
    out.print(f"pixels: {found.preprocessing.describe()}")
    if [output.name for output in found.outputs] not in ([], ["logits"]):
        for output in found.outputs:
            out.print(f"output {output.name} {list(output.shape)}: {output.meaning}")
    columns = ("block", "head widths", "computed as", "FFN", "tokens", "keys", "ghosts", "MACs", "of dense")
    out.table("", columns, [_row(layer) for layer in structure.layers])
    if structure.selecting:
        headings = ("selection before", "patches", "kept", "predictor MACs", "of all")
        rows = [_selection_row(layer, structure.prefix, slim.macs) for layer in structure.selecting]
        out.table("", headings, rows)
    out.table(
        "",
        ("", "dense", found.variant, "of dense"),
        [
            ("parameters", f"{dense.params:,}", f"{slim.params:,}", f"{slim.params / dense.params:.1%}"),
            ("MACs per image", f"{dense.macs:,}", f"{slim.macs:,}", f"{slim.macs / dense.macs:.1%}"),
        ],
    )
    out.terms(_LEGEND)


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
        f"{share:.0%}",
    )


def _groups(groups: Sequence[tuple[int, int]]) -> str:
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


def _print_usage(out: Output, found: UsageReport) -> None:
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
    out.print(f"{found.images} images, {len(found.blocks)} blocks; heads and patches where the block runs")
    out.table("", ("block", "attention", "FFN", "every head", "patches", "least to most"), rows)
    shares = [(name, f"{macs:,}", f"{macs / found.macs_dense:.1%}") for name, macs in found.quantiles.items()]
    mean = ("mean", f"{found.mean_macs:,.0f}", f"{found.mean_macs / found.macs_dense:.1%}")
    dense = ("dense", f"{found.macs_dense:,}", "100.0%")
    out.print("MACs that the decisions of an image ask for, were all that is off free")
    out.table("", ("images", "MACs", "of dense"), [mean, *shares, dense])
