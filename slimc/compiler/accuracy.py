"""Networks and images for `slimc.evaluate.accuracy`: networks with how images become their inputs, images with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slimc.backends.base import features_output, image_input
from slimc.compiler.variants import ARTEFACTS, BenchOptions, subjects
from slimc.errors import OptionError
from slimc.evaluate.accuracy import AccuracyReport, measure_accuracy, outputs_of
from slimc.evaluate.latency import Subject
from slimc.evaluate.neighbours import OUTPUT, measure_neighbours
from slimc.evaluate.progress import Progress
from slimc.files.images import check_images
from slimc.files.labels import LabelledImages, labelled_images
from slimc.ir.preprocessing import Preprocessing
from slimc.models.preprocessing import NAMES, override


@dataclass(frozen=True)
class LabelOptions:
    """A folder of labelled images, see `slimc.files.labels`.

    With `knn`, the answers are those of so many nearest neighbours in the folder `data_train`.
    """

    data: Path
    class_map: Path | None = None
    limit: int | None = None
    knn: int | None = None
    data_train: Path | None = None


def evaluate(
    paths: Sequence[Path], labels: LabelOptions, options: BenchOptions, directory: Path, progress: Progress
) -> AccuracyReport:
    """Evaluate `paths` on labelled images; what a checkpoint is compiled to lies in `directory`.

    What `options` say about images is said about artefacts too.

    Raises:
        UserError: a file, an image or an option cannot be used, or a back end is missing.
    """
    _check_neighbours(labels)
    if not labels.data.is_dir():
        raise OptionError(f"--data: {labels.data} is not a directory; expected a folder with a folder for each class")
    said = dict(options.model_options)
    if all(path.suffix in ARTEFACTS for path in paths):
        options = replace(options, model_options={name: v for name, v in said.items() if name not in NAMES})
    if labels.knn is not None and not all(path.suffix in ARTEFACTS for path in paths):
        options = replace(options, outputs=(OUTPUT,), outputs_said="--knn")
    found = [_prepared(subject, said) for subject in subjects(paths, options, directory, progress)]
    if labels.knn is not None and labels.data_train is not None:
        return _by_neighbours(found, labels, labels.data_train, labels.knn, progress)
    data = labelled_images(labels.data, outputs_of(found), labels.class_map, labels.limit)
    _check(data, "--data", progress)
    return measure_accuracy(found, data, progress=progress)


def _check_neighbours(labels: LabelOptions) -> None:
    """Refuse options about neighbours that do not go together.

    Raises:
        OptionError: they do not.
    """
    if labels.knn is None and labels.data_train is not None:
        raise OptionError("--data-train: holds neighbours; give --knn K too")
    if labels.knn is None:
        return
    if labels.data_train is None:
        raise OptionError("--knn: needs --data-train DIR, the labelled images that neighbours are among")
    if labels.knn < 1:
        raise OptionError(f"--knn: {labels.knn} neighbours cannot vote; expected at least 1")
    if labels.class_map is not None:
        raise OptionError("--class-map: says which output a class is, and neighbours have classes and no outputs")
    for option, folder in (("--data-train", labels.data_train), ("--data", labels.data)):
        if not folder.is_dir():
            raise OptionError(f"{option}: {folder} is not a directory; expected a folder with a folder for each class")


def _by_neighbours(
    found: Sequence[Subject], labels: LabelOptions, folder: Path, k: int, progress: Progress
) -> AccuracyReport:
    for subject in found:
        features_output(subject.session, subject.name)
    train = labelled_images(folder, None, option="--data-train")
    data = labelled_images(labels.data, None, limit=labels.limit, classes=train.classes)
    _check(train, "--data-train", progress)
    _check(data, "--data", progress)
    return measure_neighbours(found, train, data, k, progress=progress)


def _check(data: LabelledImages, option: str, progress: Progress) -> None:
    with progress(f"checking {len(data)} images") as advance:
        check_images(data.files, advance, option)


def _prepared(subject: Subject, options: Mapping[str, Any]) -> Subject:
    """`subject` with how images become its inputs, as `options` say or its file does.

    Raises:
        OptionError: neither says it.
    """
    own = subject.preprocessing
    if own is None:
        if options.get("mean") is None or options.get("std") is None:
            raise OptionError(f"{subject.name}: does not say how images become its inputs; give --mean and --std")
        channels = image_input(subject.session, subject.name).shape[1]
        own = Preprocessing((0.5,) * channels, (0.5,) * channels)
    return replace(subject, preprocessing=override(own, options))
