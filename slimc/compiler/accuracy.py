"""Networks and images for `slimc.evaluate.accuracy`: networks with how images become their inputs, images with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slimc.backends.base import image_input
from slimc.compiler.variants import ARTEFACTS, BenchOptions, subjects
from slimc.errors import OptionError
from slimc.evaluate.accuracy import AccuracyReport, measure_accuracy, outputs_of
from slimc.evaluate.latency import Subject
from slimc.evaluate.progress import Progress
from slimc.files.images import check_images
from slimc.files.labels import labelled_images
from slimc.ir.preprocessing import Preprocessing
from slimc.models.preprocessing import NAMES, override


@dataclass(frozen=True)
class LabelOptions:
    """A folder of labelled images, see `slimc.files.labels`."""

    data: Path
    class_map: Path | None = None
    limit: int | None = None


def evaluate(
    paths: Sequence[Path], labels: LabelOptions, options: BenchOptions, directory: Path, progress: Progress
) -> AccuracyReport:
    """Evaluate `paths` on labelled images; what a checkpoint is compiled to lies in `directory`.

    What `options` say about images is said about artefacts too.

    Raises:
        UserError: a file, an image or an option cannot be used, or a back end is missing.
    """
    if not labels.data.is_dir():
        raise OptionError(f"--data: {labels.data} is not a directory; expected a folder with a folder for each class")
    said = dict(options.model_options)
    if all(path.suffix in ARTEFACTS for path in paths):
        options = replace(options, model_options={name: v for name, v in said.items() if name not in NAMES})
    found = [_prepared(subject, said) for subject in subjects(paths, options, directory, progress)]
    data = labelled_images(labels.data, outputs_of(found), labels.class_map, labels.limit)
    with progress(f"checking {len(data)} images") as advance:
        check_images(data.files, advance)
    return measure_accuracy(found, data, progress=progress)


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
