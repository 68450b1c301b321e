"""The library's function for accuracy on labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from slimc.compiler.accuracy import LabelOptions, evaluate
from slimc.compiler.variants import bench_options, listed_paths
from slimc.emit.precision import Precision
from slimc.evaluate.accuracy import AccuracyReport
from slimc.evaluate.progress import Progress, silent
from slimc.files.output import scratch


def accuracy(
    sources: str | Path | Iterable[str | Path],
    data: str | Path,
    *,
    class_map: str | Path | None = None,
    limit: int | None = None,
    knn: int | None = None,
    data_train: str | Path | None = None,
    backend: str | Sequence[str] = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    target: str | None = None,
    tuning: str | Path | None = None,
    precision: Precision | None = None,
    ema: bool | None = None,
    progress: Progress = silent,
    **options: Any,  # noqa: ANN401
) -> AccuracyReport:
    """How often models, engines and checkpoints are right on labelled images; a checkpoint dense, masked and slim.

    All see the same images, each prepared as its file says. Memory does not grow by the number of images, except by the
    features of those in `data_train`: n x F numbers of 4 bytes a network.

    Args:
        sources: what to evaluate.
        data: a folder with a folder of images for each class, or with images and a labels.csv of file and label.
        class_map: names of the classes in the order of the outputs, one a line; None takes them sorted.
        limit: take only so many images, spread evenly over all.
        knn: ask features instead of logits: so many nearest neighbours in `data_train` vote, by the cosine of their
            features, each with exp(cosine / 0.07), as DINO is evaluated.
        data_train: a folder like `data`, whose classes are the answers, for `knn`.
        backend: one or several: what runs them. See `bench`.
        threads: of one inference on a CPU; None leaves the choice to the back end.
        batch_size: for checkpoints; None is 1.
        target: what checkpoints are compiled for; None takes what suits the back end.
        tuning: a file that `tune` wrote, for checkpoints.
        precision: of checkpoints' matrix products; None is "fp32".
        ema: see `load`, for checkpoints.
        progress: shows what is going on.
        options: see `load`, for checkpoints; `mean`, `std`, `crop_pct` and `interpolation` for models and engines too.

    Raises:
        OptionError, ModelFileError, CheckpointError: something cannot be used.
        MissingError: a back end or a GPU is not on this machine.

    Example:
        >>> report = slimc.accuracy(["digits.onnx"], "digits", threads=1)
        >>> int(report.networks[0].scores.right.sum()), report.networks[0].scores.images
        (348, 360)
    """
    how = bench_options(backend, threads, batch_size, target, tuning, precision, options, ema)
    paths = listed_paths(sources)
    train = None if data_train is None else Path(data_train)
    labels = LabelOptions(Path(data), None if class_map is None else Path(class_map), limit, knn, train)
    with scratch() as directory:
        return evaluate(paths, labels, how, directory, progress)
