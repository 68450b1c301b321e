"""How often networks are right, side by side on the same images, which are read in batches and not held."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from slimc.backends.base import image_input, logits_output, run_outputs
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
    """What logits, or the votes of neighbours, say of labelled images.

    The answer to each [n], whether its class is among the five largest [n], and its loss [n]: the cross entropy of one
    image, in nats. Votes have none.
    """

    labels: IndexArray
    answers: IndexArray
    in_top5: BoolArray
    losses: FloatArray | None

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
        """The share of images whose label is among the five largest."""
        return float(self.in_top5.mean())

    @property
    def loss(self) -> float | None:
        """Mean cross entropy, in nats; none of votes."""
        return None if self.losses is None else float(self.losses.mean())

    def summary(self) -> dict[str, float | int | None]:
        """The figures as plain values."""
        return {"right": int(self.right.sum()), "top1": self.top1, "top5": self.top5, "loss": self.loss}


@dataclass(frozen=True, eq=False)
class Accuracy:
    """Scores of one network, how images became its inputs, and the seconds that it computed for."""

    subject: Subject
    preprocessing: Preprocessing
    scores: Scores
    seconds: float

    @staticmethod
    def of(subject: Subject, scores: Scores, seconds: float) -> Accuracy:
        """That of `subject`."""
        return Accuracy(subject, subject.preprocessing or Preprocessing(), scores, seconds)

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
class Neighbours:
    """How networks were asked that have no classifier (`slimc.evaluate.neighbours`).

    Attributes:
        k: how many neighbours vote.
        temperature: what cosines are divided by.
        train: the images that neighbours are among, with their classes.
        features: how many each network has, in order.
    """

    k: int
    temperature: float
    train: LabelledImages
    features: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class AccuracyReport:
    """What `slimc.accuracy` found.

    Attributes:
        data: the images, with their classes.
        networks: one for each network, in order.
        reading_seconds: spent on reading the images.
        warnings: what a user should know about the networks.
        neighbours: how the answers were found, where that was by the nearest of other images; none where by logits.
    """

    data: LabelledImages
    networks: tuple[Accuracy, ...]
    reading_seconds: float
    warnings: tuple[str, ...] = ()
    neighbours: Neighbours | None = None

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
    for subject in subjects:
        names = [spec.name for spec in subject.session.outputs]
        if "features" in names and "logits" not in names:
            raise ModelFileError(f"{subject.name}: has features, but no logits; give --knn K and --data-train DIR")
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
    scores: list[list[Scores]] = [[] for _ in subjects]
    seconds, reading = np.zeros(len(subjects)), 0.0
    outputs = [logits_output(subject.session, subject.name).name for subject in subjects]
    for chunk in run_chunks(subjects, data, outputs, f"evaluating {len(subjects)} network(s)", "--data", progress):
        for found, logits in zip(scores, chunk.values, strict=True):
            found.append(score(logits, data.labels[chunk.images]))
        seconds, reading = seconds + chunk.seconds, reading + chunk.reading
    measured = zip(subjects, scores, seconds, strict=True)
    networks = tuple(Accuracy.of(subject, joined(parts), float(spent)) for subject, parts, spent in measured)
    return AccuracyReport(data, networks, reading, warnings_of(subjects))


@dataclass(frozen=True, eq=False)
class Chunk:
    """What networks gave for some `images`: `values` [n, ...] and `seconds`, an entry each; `reading` took seconds too."""

    images: slice
    values: list[FloatArray]
    seconds: FloatArray
    reading: float


def run_chunks(
    subjects: Sequence[Subject],
    data: LabelledImages,
    outputs: Sequence[str],
    text: str,
    option: str,
    progress: Progress,
) -> Iterator[Chunk]:
    """Run `subjects` on all of `data`, some images at a time, for one output each; `option` is what named the images.

    Raises:
        OptionError: an image cannot be read.
        ModelFileError: a network takes or gives something else than it should.
    """
    size = _chunk(subjects)
    with progress(text) as advance:
        for start in range(0, len(data), size):
            files = data.files[start : start + size]
            inputs: dict[tuple[object, ...], FloatArray] = {}
            values, seconds, reading = [], np.zeros(len(subjects)), 0.0
            for i, (subject, output) in enumerate(zip(subjects, outputs, strict=True)):
                channels, *sides = image_input(subject.session, subject.name).shape[1:]
                preprocessing = subject.preprocessing or Preprocessing()
                key, begun = (channels, *sides, preprocessing), time.perf_counter()
                if key not in inputs:
                    inputs[key] = load_images(files, (sides[0], sides[1]), preprocessing, option, channels)
                ready = time.perf_counter()
                values.append(run_outputs(subject.session, inputs[key], subject.name, (output,))[output])
                reading, seconds[i] = reading + ready - begun, time.perf_counter() - ready
                if not np.isfinite(values[-1]).all():
                    raise ModelFileError(f"{subject.name}: gives NaN or infinite {output} for some of {files[0]} ...")
            advance(start + len(files), len(data))
            yield Chunk(slice(start, start + len(files)), values, seconds, reading)


def warnings_of(subjects: Sequence[Subject]) -> tuple[str, ...]:
    """What a user should know about `subjects`, each thing once."""
    return tuple(dict.fromkeys(warning for subject in subjects for warning in subject.warnings))


def _chunk(subjects: Sequence[Subject]) -> int:
    """How many images to read at once: whole batches of the largest size, within some memory."""
    size = max(subject.batch_size for subject in subjects)
    largest = max(4 * int(np.prod(subject.session.inputs[0].shape[1:])) for subject in subjects)
    return size * max(1, min(_CHUNK, _CHUNK_BYTES // largest) // size)


def joined(parts: Sequence[Scores]) -> Scores:
    """The scores of all parts."""
    losses = [part.losses for part in parts if part.losses is not None]
    return Scores(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.answers for part in parts]),
        np.concatenate([part.in_top5 for part in parts]),
        np.concatenate(losses) if losses else None,
    )
