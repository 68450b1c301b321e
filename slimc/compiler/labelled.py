"""A compiled model and its PyTorch network on labelled images: which of them is right more often."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slimc.backends import ort
from slimc.evaluate.accuracy import Scores, measure_accuracy, score
from slimc.evaluate.latency import Subject
from slimc.evaluate.progress import Progress, silent
from slimc.files.images import StreamedImages
from slimc.files.labels import find_labels
from slimc.files.reference import Reference


@dataclass(frozen=True)
class LabelledComparison:
    """Scores of the PyTorch network and of the model that was compiled from it, on the same images."""

    pytorch: Scores
    model: Scores


def compare_accuracy(
    model: Path, reference: Reference, data: Path, progress: Progress = silent
) -> LabelledComparison | None:
    """Scores on the images of `reference`, which lie in `data`; none where that is not laid out by classes.

    None too where there are no logits.

    Args:
        model: the ONNX model.
        reference: what the PyTorch network makes of the images.
        data: the folder.
        progress: shows what is going on.
    """
    if "logits" not in reference.outputs:
        return None
    labelled, images = find_labels(data, reference.logits.shape[1]), reference.images
    if labelled is None or not isinstance(images, StreamedImages):
        return None
    numbers = {path: len(images.held) + i for i, path in enumerate(images.files)}
    if not set(labelled.files) <= set(numbers):
        return None
    logits = reference.logits[[numbers[path] for path in labelled.files]]
    subject = Subject("the ONNX model", ort.load(model), preprocessing=images.preprocessing)
    (found,) = measure_accuracy([subject], labelled, progress=progress).networks
    return LabelledComparison(score(logits, labelled.labels), found.scores)
