"""Accuracy of networks without a classifier: what the nearest of labelled images are, as DINO measures it.

The features of all training images are held, a bank of n x F float32 numbers a network. An image is compared with each of
them by the cosine of their features; the k most similar vote for their classes, each with exp(cosine / 0.07), and the class
with the most votes is the answer (Caron et al., arXiv 2104.14294, after Wu et al., arXiv 1805.01978).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slimc.errors import OptionError
from slimc.evaluate.accuracy import Accuracy, AccuracyReport, Neighbours, Scores, joined, run_chunks, score, warnings_of
from slimc.evaluate.latency import Subject
from slimc.evaluate.progress import Progress, silent
from slimc.files.labels import LabelledImages
from slimc.ir import FloatArray, IndexArray

TEMPERATURE = 0.07
OUTPUT = "features"
# Similarities that are sorted at a time.
_CHUNK = 2**24


def measure_neighbours(
    subjects: Sequence[Subject], train: LabelledImages, data: LabelledImages, k: int, *, progress: Progress = silent
) -> AccuracyReport:
    """Run `subjects`, each of which has features and says how images become its inputs, on `train` and then on `data`.

    Raises:
        OptionError: there are fewer training images than `k`, or an image cannot be read.
        ModelFileError: a network takes or gives something else than it should.
    """
    if not 1 <= k <= len(train):
        raise OptionError(f"--knn: {k} neighbours of {len(train)} images; expected 1 to {len(train)}")
    outputs = [OUTPUT] * len(subjects)
    banks: list[FloatArray] = []
    for chunk in run_chunks(subjects, train, outputs, "collecting features", "--data-train", progress):
        if not banks:
            banks = [np.empty((len(train), values.shape[1]), np.float32) for values in chunk.values]
        for bank, values in zip(banks, chunk.values, strict=True):
            bank[chunk.images] = unit(values)
    scores: list[list[Scores]] = [[] for _ in subjects]
    seconds, reading = np.zeros(len(subjects)), 0.0
    text = f"evaluating {len(subjects)} network(s)"
    for chunk in run_chunks(subjects, data, outputs, text, "--data", progress):
        for found, bank, values in zip(scores, banks, chunk.values, strict=True):
            votes = vote(bank, train.labels, values, k, len(train.classes))
            found.append(_score(votes, data.labels[chunk.images]))
        seconds, reading = seconds + chunk.seconds, reading + chunk.reading
    measured = zip(subjects, scores, seconds, strict=True)
    networks = tuple(Accuracy.of(subject, joined(parts), float(spent)) for subject, parts, spent in measured)
    neighbours = Neighbours(k, TEMPERATURE, train, tuple(bank.shape[1] for bank in banks))
    return AccuracyReport(data, networks, reading, warnings_of(subjects), neighbours)


def unit(features: FloatArray) -> FloatArray:
    """`features` [n, F] of length 1; those of length 0 stay."""
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return (features / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def vote(bank: FloatArray, labels: IndexArray, features: FloatArray, k: int, classes: int) -> FloatArray:
    """Votes [m, classes] of the `k` nearest of `bank` [n, F], which is of length 1 and of the classes `labels` [n]."""
    votes = np.zeros((len(features), classes))
    size = max(1, _CHUNK // len(bank))
    for start in range(0, len(features), size):
        similar = unit(features[start : start + size]) @ bank.T
        nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k]
        weights = np.exp(np.take_along_axis(similar, nearest, axis=1).astype(np.float64) / TEMPERATURE)
        rows = np.arange(start, start + len(similar))[:, None]
        np.add.at(votes, (np.broadcast_to(rows, nearest.shape), labels[nearest]), weights)
    return votes


def _score(votes: FloatArray, labels: IndexArray) -> Scores:
    """Scores of votes, which have no loss; a class that nobody votes for is not among the first five."""
    found = score(votes, labels)
    voted = votes[np.arange(len(labels)), labels] > 0
    return Scores(labels, found.answers, found.in_top5 & voted, None)
