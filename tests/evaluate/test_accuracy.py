"""Scores are what they are by definition, and networks are compared on the same images."""

import resource
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from slimc.backends import ort
from slimc.backends.base import Array, TensorSpec, Timer
from slimc.errors import ModelFileError, OptionError
from slimc.evaluate.accuracy import measure_accuracy, outputs_of, score
from slimc.evaluate.latency import Subject
from slimc.files.images import load_images
from slimc.files.labels import LabelledImages, labelled_images
from slimc.ir.preprocessing import Preprocessing
from tests.artefacts import exported
from tests.digits import write_digits

HALF = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0)


@dataclass(frozen=True)
class Brightness:
    """A real, if simple, network: the logits of an image are what `weights` [classes] make of its mean."""

    weights: tuple[float, ...]
    batch: int = 1
    size: int = 8
    backend: str = "numpy"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("images", (self.batch, 3, self.size, self.size), "float32"),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("logits", (self.batch, len(self.weights)), "float32"),)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        mean = feeds["images"].mean(axis=(1, 2, 3))
        return {"logits": np.outer(mean, np.array(self.weights, np.float32)).astype(np.float32)}

    def timer(self, feeds: Mapping[str, Array]) -> Timer:
        raise NotImplementedError


def network(*weights: float, preprocessing: Preprocessing = HALF, **others: Any) -> Subject:
    return Subject("n", Brightness(weights, **others), preprocessing=preprocessing)


@pytest.fixture
def pictures(tmp_path: Path) -> LabelledImages:
    """21 uniform pictures: dark ones are of class 0, bright ones of class 1."""
    for i in range(21):
        folder = tmp_path / ("dark" if i <= 10 else "light")
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 12 * i, np.uint8)).save(folder / f"{i:02}.png")
    return labelled_images(tmp_path, 2)


@pytest.mark.parametrize("classes", [2, 5, 12])
def test_scores_are_pytorchs(classes):
    rng = np.random.default_rng(classes)
    logits, labels = rng.normal(0, 30, (40, classes)).astype(np.float32), rng.integers(0, classes, 40)
    found = score(logits, labels)
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
    best = torch.from_numpy(logits).topk(min(5, classes)).indices.numpy()
    assert found.loss == pytest.approx(float(loss), rel=1e-12)
    assert found.top1 == float((best[:, 0] == labels).mean())
    assert found.top5 == float((best == labels[:, None]).any(1).mean())
    assert found.images == 40


@pytest.mark.parametrize("batch", [1, 4, 40])
def test_every_image_counts_once_whatever_the_batch(batch, pictures):
    (found,) = measure_accuracy([network(-1, 1, batch=batch)], pictures).networks
    assert found.scores.images == 21
    assert found.scores.right.all()
    assert found.images_per_second > 0


def test_each_network_sees_the_images_as_its_file_says(pictures):
    darker = replace(HALF, mean=(0.9, 0.9, 0.9))
    right, wrong = measure_accuracy([network(-1, 1), network(-1, 1, preprocessing=darker)], pictures).networks
    assert right.scores.top1 == 1.0
    assert wrong.scores.top1 == float(
        np.mean([12 * i < 0.9 * 255 if i <= 10 else 12 * i > 0.9 * 255 for i in range(21)])
    )


def test_changes_tell_which_answers_differ_and_to_what(pictures):
    report = measure_accuracy([network(-1, 1), network(1, -1), network(-2, 2, size=4)], pictures)
    first, same, _ = report.changes
    assert (first.first, first.second, first.gained, first.lost) == (0, 1, 0, 21)
    assert first.images.tolist() == list(range(21))
    assert (same.second, len(same.images)) == (2, 0)


def test_progress_counts_images(pictures):
    from contextlib import contextmanager

    told: list[tuple[int, int]] = []

    @contextmanager
    def progress(text):
        yield lambda done, total: told.append((done, total))

    measure_accuracy([network(-1, 1)], pictures, progress=progress)
    assert told[-1] == (21, 21)


def test_networks_of_other_classes_are_refused():
    with pytest.raises(OptionError, match="n has 2 outputs, m has 3 outputs"):
        outputs_of([network(-1, 1), replace(network(-1, 0, 1), name="m")])


def test_logits_that_are_no_numbers_are_refused(pictures):
    with pytest.raises(ModelFileError, match="NaN or infinite logits"):
        measure_accuracy([network(float("inf"), 1)], pictures)


def test_memory_does_not_grow_by_the_images(tmp_path):
    """300 images of 256 pixels are 236 MB as inputs."""
    Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save(tmp_path / "a.png")
    data = LabelledImages((tmp_path / "a.png",) * 300, np.zeros(300, np.int64), ("a", "b"))
    few = LabelledImages(data.files[:32], data.labels[:32], data.classes)
    measure_accuracy([network(-1, 1, size=256)], few)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    measure_accuracy([network(-1, 1, size=256)], data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB


def test_pictures_of_digits_are_the_demos_inputs(tmp_path):
    from slimc.cli.demo import digits

    data = labelled_images(write_digits(tmp_path / "digits"), 10)
    images, labels = digits()
    order = [int(path.stem) for path in data.files]
    np.testing.assert_array_equal(data.labels, labels[order])
    found = load_images(data.files, (56, 56), HALF)
    assert np.abs(found - images[order]).max() <= 1 / 255 + 1e-6
    model = exported("digits", tmp_path, target="generic")
    (scored,) = measure_accuracy([Subject("d", ort.load(model, threads=1), preprocessing=HALF)], data).networks
    assert int(scored.scores.right.sum()) == 348
