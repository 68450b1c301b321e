"""Nearest neighbours vote as DINO's evaluation has them, on features that stream through."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from slimc.backends import ort
from slimc.backends.base import Array, TensorSpec, Timer
from slimc.errors import ModelFileError, OptionError
from slimc.evaluate import neighbours
from slimc.evaluate.latency import Subject
from slimc.evaluate.neighbours import measure_neighbours, unit, vote
from slimc.files.labels import LabelledImages, labelled_images
from slimc.ir.preprocessing import Preprocessing
from tests.artefacts import exported
from tests.digits import write_digits
from tests.onnx_files import with_features

HALF = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0)


def dino(train: Array, labels: Array, features: Array, targets: Array, k: int, classes: int) -> tuple[float, float]:
    """`knn_classifier` of DINO's eval_knn.py, on features that it normalises first: top-1 and top-5 in [0, 1]."""
    bank = torch.nn.functional.normalize(torch.from_numpy(train), dim=1).t()
    asked = torch.nn.functional.normalize(torch.from_numpy(features), dim=1)
    similarity = torch.mm(asked, bank)
    distances, indices = similarity.topk(k, largest=True, sorted=True)
    candidates = torch.from_numpy(labels).view(1, -1).expand(len(asked), -1)
    retrieved = torch.gather(candidates, 1, indices)
    one_hot = torch.zeros(k, classes).resize_(len(asked) * k, classes).zero_()
    one_hot.scatter_(1, retrieved.view(-1, 1), 1)
    weights = distances.clone().div_(0.07).exp_()
    votes = torch.sum(torch.mul(one_hot.view(len(asked), -1, classes), weights.view(len(asked), -1, 1)), 1)
    _, predictions = votes.sort(1, True)
    correct = predictions.eq(torch.from_numpy(targets).view(-1, 1))
    return float(correct[:, 0].float().mean()), float(correct[:, : min(5, k)].any(1).float().mean())


def clusters(classes: int, each: int, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((classes, 16))
    labels = np.repeat(np.arange(classes), each)
    return (centres[labels] + 1.2 * rng.standard_normal((len(labels), 16))).astype(np.float32), labels


@pytest.mark.parametrize("k", [1, 5, 20])
def test_votes_are_dinos(k):
    train, labels = clusters(8, 30, 1)
    features, targets = clusters(8, 12, 2)
    votes = vote(unit(train), labels, features, k, 8)
    top1, _ = dino(train, labels, features, targets, k, 8)
    assert (votes.argmax(1) == targets).mean() == pytest.approx(top1)
    assert 0.3 < top1 < 1.0, "neither hopeless nor trivial"


def test_chunks_make_no_difference(monkeypatch):
    train, labels = clusters(4, 10, 1)
    features, _ = clusters(4, 5, 2)
    whole = vote(unit(train), labels, features, 3, 4)
    monkeypatch.setattr(neighbours, "_CHUNK", 1)
    np.testing.assert_allclose(vote(unit(train), labels, features, 3, 4), whole, rtol=1e-6)


def test_features_of_length_zero_stay():
    assert unit(np.zeros((2, 3), np.float32)).tolist() == [[0.0] * 3] * 2


@dataclass(frozen=True)
class Halves:
    """A real, if simple, network: its features are the means of an image's upper and lower half."""

    batch: int = 1
    size: int = 8
    name: str = "features"
    backend: str = "numpy"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("images", (self.batch, 3, self.size, self.size), "float32"),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(self.name, (self.batch, 2), "float32"),)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        upper, lower = np.split(feeds["images"], 2, axis=2)
        return {self.name: np.stack([upper.mean((1, 2, 3)), lower.mean((1, 2, 3))], axis=1).astype(np.float32)}

    def timer(self, feeds: Mapping[str, Array]) -> Timer:
        raise NotImplementedError


def subject(**others: Any) -> Subject:
    return Subject("n", Halves(**others), preprocessing=HALF)


@pytest.fixture
def pictures(tmp_path: Path) -> LabelledImages:
    """Pictures that are bright above or below."""
    for i in range(14):
        folder = tmp_path / ("above" if i % 2 else "below")
        folder.mkdir(exist_ok=True)
        pixels = np.full((8, 8, 3), 10 + i, np.uint8)
        pixels[slice(0, 4) if i % 2 else slice(4, 8)] = 240 - i
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return labelled_images(tmp_path, None)


@pytest.mark.parametrize("batch", [1, 4, 40])
def test_every_image_counts_once_whatever_the_batch(batch, pictures):
    report = measure_neighbours([subject(batch=batch), subject(size=4)], pictures, pictures, 3)
    for network in report.networks:
        assert network.scores.images == 14
        assert network.scores.right.all()
        assert network.scores.loss is None
    assert report.neighbours is not None
    assert (report.neighbours.k, report.neighbours.features) == (3, (2, 2))
    assert report.changes[0].images.tolist() == []


def test_a_class_that_nobody_votes_for_is_not_among_the_first_five(pictures):
    others = LabelledImages(pictures.files, 1 - pictures.labels, pictures.classes)
    (network,) = measure_neighbours([subject()], pictures, others, 1).networks
    assert (network.scores.top1, network.scores.top5) == (0.0, 0.0)


def test_more_neighbours_than_images_are_refused(pictures):
    with pytest.raises(OptionError, match="--knn: 15 neighbours of 14 images; expected 1 to 14"):
        measure_neighbours([subject()], pictures, pictures, 15)


def test_a_network_without_features_is_refused(pictures):
    with pytest.raises(ModelFileError, match=r"n: has no output features, but logits \[1, 2\]"):
        measure_neighbours([subject(name="logits")], pictures, pictures, 1)


def test_the_digits_by_the_features_of_a_trained_network(tmp_path):
    data = labelled_images(write_digits(tmp_path / "digits"), None)
    rows = np.arange(len(data))
    train, test = (
        LabelledImages(tuple(data.files[i] for i in rows[chosen]), data.labels[chosen], data.classes)
        for chosen in (rows % 3 != 0, rows % 3 == 0)
    )
    path = with_features(exported("digits", tmp_path, target="generic"))
    network = Subject("d", ort.load(path, threads=1), preprocessing=HALF)
    report = measure_neighbours([network], train, test, 10)
    assert report.networks[0].scores.top1 > 0.93, "the classifier has 348 of 360"
    features = {}
    for name, images in (("train", train), ("test", test)):
        loaded = np.concatenate([_features(network, images, i) for i in range(len(images))])
        features[name] = loaded
    top1, top5 = dino(features["train"], train.labels, features["test"], test.labels, 10, 10)
    scores = report.networks[0].scores
    assert scores.top1 == pytest.approx(top1)
    assert scores.top1 <= scores.top5 <= top5, "DINO's five have classes in them that nobody votes for"


def _features(network: Subject, images: LabelledImages, number: int) -> Array:
    from slimc.files.images import load_images

    return network.session.run({"images": load_images([images.files[number]], (56, 56), HALF)})["features"]
