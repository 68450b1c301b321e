"""``slimc eval``: how often networks are right on labelled images, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimc.cli import options as opt

if TYPE_CHECKING:
    from slimc.cli.console import Output
    from slimc.evaluate.accuracy import AccuracyReport, Neighbours

SUMMARY = "Accuracy of models, engines and checkpoints on labelled images."
HELP = """Evaluate models, engines and checkpoints side by side on a folder of labelled images.

DIR holds a folder of images for each class, whose sorted names stand for the outputs in order, or a labels.csv of file and
label. A checkpoint is evaluated dense, masked and slim. Images are prepared as each network's file says; --mean, --std,
--crop-pct and --interpolation say otherwise, of models and engines too.

With --knn K, networks answer by their features: the K images of --data-train with the most similar ones vote (cosine
similarity, each vote exp(similarity / 0.07), as DINO is evaluated)."""
EXAMPLE = "Example: slimc eval checkpoint.pth small.onnx --data val --threads 2"
# How many files of a change are printed, and up to how many networks every pair.
_NAMED, _ALL_PAIRS = 5, 3


@opt.expand
def command(
    sources: Annotated[list[Path], typer.Argument(metavar="ARTIFACT|CKPT...", help="What to evaluate.")],
    given: opt.Given,
    printing: opt.Printing,
    precision: opt.PrecisionOptions,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Images with their classes.")],
    class_map: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names of folders or labels, one a line, in the order of the outputs."),
    ] = None,
    knn: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Ask the features of networks without a classifier: K nearest neighbours of --data-train vote.",
        ),
    ] = None,
    data_train: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For --knn: the images that neighbours are among, with their classes."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take only so many images, spread evenly over all.")] = None,
    backend: opt.Backends = None,
    threads: opt.Threads = None,
    batch_size: Annotated[int | None, typer.Option(help="For checkpoints. Default: 1.")] = None,
    target: opt.CheckpointTarget = None,
    tuning: opt.TuningFile = None,
) -> None:
    """Evaluate SOURCES."""
    import slimc
    from slimc.cli.results import eval_json

    out = printing.output()
    report = slimc.accuracy(
        sources,
        data,
        class_map=class_map,
        limit=limit,
        knn=knn,
        data_train=data_train,
        backend=backend or "auto",
        threads=threads,
        batch_size=batch_size,
        target=target,
        tuning=tuning,
        precision=precision.read(),
        ema=given.ema,
        progress=out.progress,
        **given.options,
    )
    out.result(
        "eval", eval_json(report, data, data_train), inputs=opt.inputs(*sources, *given.files, class_map, tuning)
    )
    _print_report(out, report)
    for warning in report.warnings:
        out.warn(warning)


def _print_neighbours(out: Output, found: Neighbours) -> None:
    held = len(found.train) * sum(found.features) * 4 / 1e6
    sizes = " and ".join(map(str, dict.fromkeys(found.features)))
    out.print(
        f"by the {found.k} nearest of {len(found.train)} images, in cosine similarity of {sizes} features; a vote is "
        f"exp(similarity / {found.temperature}); {held:.1f} MB of features held"
    )


def _print_report(out: Output, report: AccuracyReport) -> None:
    subjects = [network.subject for network in report.networks]
    backends = {subject.session.backend for subject in subjects}
    labels = [subject.label for subject in subjects]
    # Labels tell the networks apart unless the same one runs twice; names tell the back end as well.
    names = labels if len(set(labels)) == len(labels) else [subject.name for subject in subjects]
    out.print(f"{len(report.data)} images of {len(report.data.classes)} classes, {', '.join(sorted(backends))}")
    if report.neighbours is not None:
        _print_neighbours(out, report.neighbours)
    rows = [
        (
            name,
            f"{network.scores.top1:.2%}",
            f"{int(network.scores.right.sum())} of {network.scores.images}",
            f"{network.scores.top5:.2%}",
            "-" if network.scores.loss is None else f"{network.scores.loss:.4f}",
            f"{network.images_per_second:.1f}",
        )
        for name, network in zip(names, report.networks, strict=True)
    ]
    out.table("", ("network", "top-1", "right", "top-5", "loss", "images/s"), rows)
    few = len(names) <= _ALL_PAIRS
    for change in report.changes:
        if few or change.first == 0:
            files = [str(report.data.files[row]) for row in change.images[:_NAMED]]
            more = f" and {len(change.images) - _NAMED} more" if len(change.images) > _NAMED else ""
            out.print(
                f"{names[change.first]} -> {names[change.second]}: {len(change.images)} of {len(report.data)} answers "
                "changed"
                + (f" ({change.gained} to right, {change.lost} to wrong): {', '.join(files)}{more}" if files else "")
            )
    if not few:
        out.print("changes between the others: --json")
