"""How often networks are right, side by side on the same images, which are read in batches and not held."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from slimc.backends.base import image_input, logits_output, run_images
from slimc.errors import ModelFileError, OptionError
from slimc.evaluate.latency import Subject
from slimc.evaluate.progress import Progress, silent
from slimc.files.images import load_images
from slimc.files.labels import LabelledImages
from slimc.ir import BoolArray, FloatArray, IndexArray
from slimc.ir.preprocessing import Preprocessing

_CHUNK = 32
_CHUNK_BYTES = 2**26


@dataclass(frozen=True, eq=False)
class Scores:
    """What logits say of labelled images: the answer to each [n], whether it is among the five largest [n], its loss [n].

    A loss is the cross entropy of one image, in nats.
    """

    labels: IndexArray
    answers: IndexArray
    in_top5: BoolArray
    losses: FloatArray

    @property
    def images(self) -> int:
        """How many there are."""
        return len(self.labels)

    @property
    def right(self) -> BoolArray:
        """Whether the answer is the label [n]."""
        return np.asarray(self.answers == self.labels)

    @property
    def top1(self) -> float:
        """The share of right answers."""
        return float(self.right.mean())

    @property
    def top5(self) -> float:
        """The share of images whose label is among the five largest logits."""
        return float(self.in_top5.mean())

    @property
    def loss(self) -> float:
        """Mean cross entropy, in nats."""
        return float(self.losses.mean())

    def summary(self) -> dict[str, float | int]:
        """The figures as plain values."""
        return {"right": int(self.right.sum()), "top1": self.top1, "top5": self.top5, "loss": self.loss}


@dataclass(frozen=True, eq=False)
class Accuracy:
    """Scores of one network, how images became its inputs, and the seconds that it computed for."""

    subject: Subject
    preprocessing: Preprocessing
    scores: Scores
    seconds: float

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of its inputs."""
        height, width = self.subject.session.inputs[0].shape[2:]
        return height, width

    @property
    def images_per_second(self) -> float:
        """Throughput of the network, without reading images."""
        return self.scores.images / self.seconds


@dataclass(frozen=True, eq=False)
class Change:
    """The images [c] to which two networks, by their numbers, give other answers."""

    first: int
    second: int
    images: IndexArray
    gained: int
    lost: int


@dataclass(frozen=True, eq=False)
class AccuracyReport:
    """What `slimc.accuracy` found.

    Attributes:
        data: the images, with their classes.
        networks: one for each network, in order.
        reading_seconds: spent on reading the images.
        warnings: what a user should know about the networks.
    """

    data: LabelledImages
    networks: tuple[Accuracy, ...]
    reading_seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def changes(self) -> tuple[Change, ...]:
        """Which answers differ, for every pair of networks; `gained` are right in the second only, `lost` in the first."""
        found = []
        for first, second in combinations(range(len(self.networks)), 2):
            a, b = self.networks[first].scores, self.networks[second].scores
            gained, lost = int((b.right & ~a.right).sum()), int((a.right & ~b.right).sum())
            found.append(Change(first, second, np.flatnonzero(a.answers != b.answers), gained, lost))
        return tuple(found)


def score(logits: FloatArray, labels: IndexArray) -> Scores:
    """Scores of `logits` [n, classes] on images of the classes `labels` [n]; of equal logits the first counts as larger."""
    logits = logits.astype(np.float64)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    largest = logits.max(axis=1)
    total = np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest
    losses = total - logits[np.arange(len(labels)), labels]
    return Scores(labels, order[:, 0].astype(np.int64), (order == labels[:, None]).any(axis=1), losses)


def outputs_of(subjects: Sequence[Subject]) -> int:
    """How many classes all of `subjects` tell apart.

    Raises:
        OptionError: they do not tell the same number apart, or there is none of them.
        ModelFileError: one has no logits.
    """
    counts = {subject.name: logits_output(subject.session, subject.name).shape[1] for subject in subjects}
    if len(set(counts.values())) != 1:
        said = ", ".join(f"{name} has {count} outputs" for name, count in counts.items()) or "there are none"
        raise OptionError(f"only networks of the same classes can be evaluated side by side: {said}")
    return next(iter(counts.values()))


def measure_accuracy(
    subjects: Sequence[Subject], data: LabelledImages, *, progress: Progress = silent
) -> AccuracyReport:
    """Run `subjects`, each of which says how images become its inputs, on `data`.

    Raises:
        OptionError: an image cannot be read.
        ModelFileError: a network takes or gives something else than it should.
    """
    chunk = _chunk(subjects)
    scores: list[list[Scores]] = [[] for _ in subjects]
    seconds, reading = [0.0] * len(subjects), 0.0
    with progress(f"evaluating {len(subjects)} network(s)") as advance:
        for start in range(0, len(data), chunk):
            files, labels = data.files[start : start + chunk], data.labels[start : start + chunk]
            inputs: dict[tuple[object, ...], FloatArray] = {}
            for i, subject in enumerate(subjects):
                channels, *size = image_input(subject.session, subject.name).shape[1:]
                preprocessing = subject.preprocessing or Preprocessing()
                key, begun = (channels, *size, preprocessing), time.perf_counter()
                if key not in inputs:
                    inputs[key] = load_images(files, (size[0], size[1]), preprocessing, channels=channels)
                ready = time.perf_counter()
                logits = run_images(subject.session, inputs[key], subject.name)
                reading, seconds[i] = reading + ready - begun, seconds[i] + time.perf_counter() - ready
                if not np.isfinite(logits).all():
                    raise ModelFileError(f"{subject.name}: gives NaN or infinite logits for some of {files[0]} ...")
                scores[i].append(score(logits, labels))
            advance(start + len(files), len(data))
    measured = zip(subjects, scores, seconds, strict=True)
    found = [
        Accuracy(subject, subject.preprocessing or Preprocessing(), _joined(parts), spent)
        for subject, parts, spent in measured
    ]
    warnings = dict.fromkeys(warning for subject in subjects for warning in subject.warnings)
    return AccuracyReport(data, tuple(found), reading, tuple(warnings))


def _chunk(subjects: Sequence[Subject]) -> int:
    """How many images to read at once: whole batches of the largest size, within some memory."""
    size = max(subject.batch_size for subject in subjects)
    largest = max(4 * int(np.prod(subject.session.inputs[0].shape[1:])) for subject in subjects)
    return size * max(1, min(_CHUNK, _CHUNK_BYTES // largest) // size)


def _joined(parts: Sequence[Scores]) -> Scores:
    return Scores(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.answers for part in parts]),
        np.concatenate([part.in_top5 for part in parts]),
        np.concatenate([part.losses for part in parts]),
    )
