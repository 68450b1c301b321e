"""Comparing latencies: interleaved rounds over several networks, so that what disturbs the machine disturbs them alike.

A round times a few inferences of every subject, one subject after the other, starting with another one each time. The
ratio of two subjects is the median over the rounds of the ratio within a round. On a GPU each inference is timed by CUDA
events around a graph launch, as trtexec does, without transfers; on a CPU by the wall clock.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slimc.backends import cores
from slimc.backends.base import Session, Timer, Timing, image_input
from slimc.errors import OptionError
from slimc.evaluate.progress import Progress, silent
from slimc.files.images import seeded_images
from slimc.ir import FloatArray
from slimc.ir.preprocessing import Preprocessing

WARM_UP_SECONDS = 0.2
MIN_ROUNDS = 10
_ROUND_SECONDS = 0.05
_NOISY_CPU = 0.10
_NOISY_GPU = 0.025  # trtexec's own limit for "consider locking the clocks"
_ENQUEUE_SHARE = 0.8  # trtexec's limit for "the host cannot keep up"


@dataclass(frozen=True, eq=False)
class Subject:
    """A network to time.

    Attributes:
        name: tells it from the others.
        label: what tells it from others on the same back end, for tables.
        preprocessing: how images become its inputs; none where nobody knows.
        warnings: what a user should know about how it was understood.
        session: runs it.
        family: what variants of one checkpoint on one back end share.
        variant: "dense", "masked" or "slim"; empty where nobody knows.
        macs: multiply-accumulates an image; none where they depend on it or nobody knows them.
        precision: of its products, such as "fp32"; empty where nobody knows.
        target: what it was compiled for; empty where nobody knows.
        threads: of one inference; none where the back end chooses.
    """

    name: str
    session: Session
    family: str = ""
    variant: str = ""
    macs: int | None = None
    precision: str = ""
    target: str = ""
    threads: int | None = None
    label: str = ""
    preprocessing: Preprocessing | None = None
    warnings: tuple[str, ...] = ()

    @property
    def batch_size(self) -> int:
        """Images in one inference."""
        return self.session.inputs[0].shape[0]


@dataclass(frozen=True, eq=False)
class Measurement:
    """Times of one subject: `rounds` [n] is each round's median latency in seconds, `latencies` every inference."""

    subject: Subject
    latencies: FloatArray
    rounds: FloatArray
    enqueue: float | None

    @property
    def median(self) -> float:
        """Median latency of one inference, in seconds."""
        return float(np.median(self.latencies))

    @property
    def variation(self) -> float:
        """Standard deviation over mean of the latencies."""
        return float(self.latencies.std() / self.latencies.mean())

    def percentile(self, share: float) -> float:
        """The latency in seconds that `share` per cent of the inferences stay below."""
        return float(np.percentile(self.latencies, share))

    @property
    def throughput(self) -> float:
        """Images a second at the median latency."""
        return self.subject.batch_size / self.median

    def tail(self, share: float) -> float | None:
        """`percentile`, where there are enough inferences to tell: at least one beyond it is to be expected."""
        return self.percentile(share) if len(self.latencies) * (100 - share) >= 100 else None

    def summary(self, first: Measurement) -> dict[str, float | int | str | None]:
        """The figures as plain values, times in milliseconds; `ratio_to_first` is the latency over that of `first`."""
        p90, p99 = self.tail(90), self.tail(99)
        return {
            "name": self.subject.name,
            "family": self.subject.family or None,
            "backend": self.subject.session.backend,
            "variant": self.subject.variant or None,
            "precision": self.subject.precision or None,
            "target": self.subject.target or None,
            "threads": self.subject.threads,
            "batch_size": self.subject.batch_size,
            "macs": self.subject.macs,
            "ratio_to_first": 1 / ratio(first, self).median,
            "median_ms": self.median * 1e3,
            "mean_ms": float(self.latencies.mean()) * 1e3,
            "p90_ms": None if p90 is None else p90 * 1e3,
            "p99_ms": None if p99 is None else p99 * 1e3,
            "min_ms": float(self.latencies.min()) * 1e3,
            "variation": self.variation,
            "images_per_second": self.throughput,
            "inferences": len(self.latencies),
            "rounds": len(self.rounds),
        }


@dataclass(frozen=True)
class Ratio:
    """Speed of one subject over that of another, per round: the median and the 10th and 90th percentiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Realised:
    """What became of a cut in arithmetic. `share` = (1 - t_slim / t_dense) / (1 - MACs_slim / MACs_dense)."""

    family: str
    speedup: Ratio
    macs_ratio: float
    share: float | None


def measure(
    subjects: Sequence[Subject], seconds: float, *, min_rounds: int = MIN_ROUNDS, progress: Progress = silent
) -> list[Measurement]:
    """Time `subjects` in interleaved rounds for about `seconds` each, warming up included.

    Rounds are short enough for `min_rounds` of them; where a single inference takes longer than such a round, there are
    fewer. There is one in any case.

    Raises:
        OptionError: there is nothing to time, or no time to do it in.
    """
    check_seconds(seconds)
    if not subjects:
        raise OptionError("there is nothing to time; expected a model, an engine or a checkpoint")
    total = seconds * len(subjects)
    start = time.perf_counter()
    timers = [_timer(subject) for subject in subjects]
    with progress(f"timing {len(subjects)} networks, {seconds:g} s each") as advance:
        warm_up = min(WARM_UP_SECONDS, seconds / 10)
        counts = [_warm_up(timer, warm_up, seconds / (2 * min_rounds)) for timer in timers]
        timings: list[list[list[Timing]]] = [[] for _ in subjects]
        number = 0
        while number == 0 or time.perf_counter() - start < total:
            for offset in range(len(subjects)):
                i = (number + offset) % len(subjects)
                timers[i]()  # brings back into the caches what the others drove out
                timings[i].append([timers[i]() for _ in range(counts[i])])
                advance(min(round(1e3 * (time.perf_counter() - start)), round(1e3 * total)), round(1e3 * total))
            number += 1
    return [_measurement(subject, rounds) for subject, rounds in zip(subjects, timings, strict=True)]


def check_seconds(seconds: float) -> None:
    """Find out before any work whether there is time.

    Raises:
        OptionError: `seconds` are no time.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise OptionError(f"--seconds: {seconds} are no time to measure in; expected more than 0")


def _timer(subject: Subject) -> Timer:
    spec = image_input(subject.session, subject.name)
    images = seeded_images(spec.shape[0], (spec.shape[2], spec.shape[3]), 0, spec.shape[1])
    return subject.session.timer({spec.name: images.astype(spec.dtype)})


def _warm_up(timer: Timer, seconds: float, longest: float) -> int:
    """Run for `seconds`; the number of inferences that make up a round, which is to take no longer than `longest`."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    while not latencies or time.perf_counter() < end:
        latencies.append(timer().latency)
    return max(1, min(100, int(min(_ROUND_SECONDS, longest) / max(float(np.median(latencies)), 1e-6))))


def _measurement(subject: Subject, rounds: Sequence[Sequence[Timing]]) -> Measurement:
    latencies = np.array([timing.latency for timings in rounds for timing in timings])
    enqueues = [timing.enqueue for timings in rounds for timing in timings if timing.enqueue is not None]
    medians = np.array([np.median([timing.latency for timing in timings]) for timings in rounds])
    return Measurement(subject, latencies, medians, float(np.median(enqueues)) if enqueues else None)


def ratio(slow: Measurement, fast: Measurement) -> Ratio:
    """How many times faster `fast` is than `slow`, from rounds that lie side by side."""
    ratios = slow.rounds / fast.rounds
    low, median, high = np.percentile(ratios, (10, 50, 90))
    return Ratio(float(median), float(low), float(high))


def realised(measurements: Sequence[Measurement]) -> list[Realised]:
    """For every family with a dense and a slim network: how much of the cut in MACs became time."""
    results = []
    families = dict.fromkeys(m.subject.family for m in measurements if m.subject.family)
    for family in families:
        members = {m.subject.variant: m for m in measurements if m.subject.family == family}
        dense, slim = members.get("dense"), members.get("slim")
        if dense is None or slim is None or not dense.subject.macs or slim.subject.macs is None:
            continue
        speedup, macs_ratio = ratio(dense, slim), slim.subject.macs / dense.subject.macs
        share = (1 - 1 / speedup.median) / (1 - macs_ratio) if macs_ratio < 1 else None
        results.append(Realised(family, speedup, macs_ratio, share))
    return results


def warnings(measurements: Sequence[Measurement]) -> list[str]:
    """What makes the figures doubtful."""
    found = []
    for m in measurements:
        name, on_gpu = m.subject.name, m.enqueue is not None
        if on_gpu and m.variation > _NOISY_GPU:
            found.append(f"{name}: times vary by {m.variation:.1%}; lock the clocks (nvidia-smi --lock-gpu-clocks)")
        if not on_gpu and m.variation > _NOISY_CPU:
            found.append(
                f"{name}: times vary by {m.variation:.1%}: the machine is noisy; trust ratios, not milliseconds"
            )
        if m.enqueue is not None and m.enqueue > _ENQUEUE_SHARE * m.median:
            found.append(f"{name}: enqueueing takes {m.enqueue / m.median:.0%} of the GPU's time; the host limits it")
    return found


def machine_warnings(threads: int | None) -> list[str]:
    """What makes this machine a doubtful place for measuring with so many `threads`."""
    return [doubt for doubt in (load_warning(), thread_warning(threads)) if doubt is not None]


def load_warning() -> str | None:
    """Whether other processes keep this machine busy before anything is timed; none where they do not."""
    usable = cores.count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return f"the machine is busy: load {load:.1f} on {usable} core(s)" if load > 0.5 * usable else None


def thread_warning(threads: int | None) -> str | None:
    """Whether `threads` are more than the cores that this process may use; none where they are not."""
    usable = cores.count()
    if threads is None or threads <= usable:
        return None
    return f"{threads} threads share {usable} core(s): a machine with as many takes other times"
