"""How far the values of one output are from those expected, and whether that is near enough.

Differences are measured in the output's own spread: the standard deviation over its channels about their mean, as a root
mean square over its rows. Absolute figures mean nothing across networks, as scales are arbitrary; the range would grow with
the number of channels; and what all logits of an input share changes no decision, so the mean is taken out. A row is an
input of logits or features [n, C], and a patch of an input of tokens [n, N, C] or maps [n, C, height, width]. Where there is
one channel there is no spread within a row: there it is that across the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from slimc.errors import MismatchError, ModelFileError
from slimc.ir import FloatArray

# Values that are taken in float64 at a time.
_CHUNK = 2**22


@dataclass(frozen=True, eq=False)
class Difference:
    """One output of a model, [n, *shape], against what was expected.

    `max_abs`, `mean_abs` and `p99_abs` are over all values. `max_rel` is `max_abs` in units of `spread`. `cosine` is the
    smallest over the rows. `worst_of_input` [n] is each input's largest difference, and `worst_input` where that is largest.
    """

    output: str
    inputs: int
    shape: tuple[int, ...]
    tolerance: float
    spread: float
    max_abs: float
    mean_abs: float
    p99_abs: float
    max_rel: float
    cosine: float
    worst_input: int
    worst_of_input: FloatArray

    @property
    def passed(self) -> bool:
        """Whether no value is further off than the tolerance allows."""
        return self.max_rel <= self.tolerance

    @property
    def unit(self) -> str:
        """What `max_rel` counts in, for people."""
        return "the logits' spread" if self.output == "logits" else f"the spread of {self.output}"


def differ(output: str, actual: FloatArray, expected: FloatArray, tolerance: float) -> Difference:
    """Compare the values of an output, by what it is called: [n, C], [n, N, C] or [n, C, height, width].

    Args:
        output: its name, for messages.
        actual: what was computed.
        expected: the reference.
        tolerance: the largest difference allowed, as a share of the spread (see the module).

    Raises:
        ModelFileError: the shapes differ, or the reference cannot be measured against: not finite, or without spread.
        MismatchError: there is nothing to compare, or `actual` is not finite.
    """
    check(output, actual, expected, tolerance)
    spread = _spread(output, expected)
    worst, total, cosine = np.empty(len(expected)), 0.0, np.inf
    differences = np.empty(expected.shape, np.float32)
    for some in _chunks(expected):
        ours, theirs = rows_of(actual[some]), rows_of(expected[some])
        difference = np.abs(ours - theirs)
        worst[some] = difference.reshape(len(worst[some]), -1).max(axis=1)
        differences[some] = difference.reshape(differences[some].shape)
        total += float(difference.sum())
        cosine = min(cosine, float(_cosines(ours, theirs).min()))
    return Difference(
        output=output,
        inputs=len(expected),
        shape=expected.shape[1:],
        tolerance=tolerance,
        spread=spread,
        max_abs=float(worst.max()),
        mean_abs=total / expected.size,
        p99_abs=float(np.percentile(differences, 99, overwrite_input=True)),
        max_rel=float(worst.max() / spread),
        cosine=cosine,
        worst_input=int(worst.argmax()),
        worst_of_input=worst,
    )


def figures(found: Difference) -> dict[str, Any]:
    """`found` as plain values, without the errors of single inputs."""
    values = {field.name: getattr(found, field.name) for field in fields(Difference) if field.name != "worst_of_input"}
    return {**values, "shape": list(found.shape), "passed": found.passed}


def check(output: str, actual: FloatArray, expected: FloatArray, tolerance: float) -> None:
    """Refuse what cannot be compared; see `differ`."""
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise ModelFileError(f"the tolerance {tolerance} is not a number of at least 0")
    if actual.shape != expected.shape or expected.ndim not in (2, 3, 4):
        raise ModelFileError(
            f"{output} {list(actual.shape)} cannot be compared with a reference {list(expected.shape)}: "
            "the reference belongs to another model"
        )
    if expected.size == 0:
        raise MismatchError("nothing was compared: the reference is empty")
    if not np.isfinite(expected).all():
        raise ModelFileError(f"the reference cannot be measured against: it holds NaN or infinite {output}")
    bad = np.flatnonzero(~np.isfinite(actual).reshape(len(actual), -1).all(axis=1))
    if bad.size:
        raise MismatchError(f"NaN or infinite {output} for {bad.size} of {len(actual)} inputs, first input {bad[0]}")


def rows_of(values: FloatArray) -> FloatArray:
    """The rows [rows, C] of an output, in float64."""
    last = np.moveaxis(values, 1, -1) if values.ndim == 4 else values
    return last.reshape(-1, last.shape[-1]).astype(np.float64)


def _chunks(values: FloatArray) -> Iterator[slice]:
    """The inputs, some at a time."""
    size = max(1, _CHUNK * len(values) // values.size)
    for start in range(0, len(values), size):
        yield slice(start, start + size)


def _spread(output: str, expected: FloatArray) -> float:
    """The spread of an output that is expected (see the module).

    Raises:
        ModelFileError: there is none.
    """
    if expected.shape[-1 if expected.ndim < 4 else 1] > 1:
        chunks = (rows_of(expected[some]) for some in _chunks(expected))
        sums = np.sum([(rows.var(axis=1).sum(), len(rows)) for rows in chunks], axis=0)
        spread = float(np.sqrt(sums[0] / sums[1]))
    else:
        spread = float(expected.std(dtype=np.float64))
    if spread == 0.0 and output == "logits":
        raise ModelFileError(
            f"nothing can be compared: all outputs of every input are {expected.flat[0]:g}, as of a head that was "
            "initialised with zeros and never trained; train it, or export with --no-verify"
        )
    if spread == 0.0:
        raise ModelFileError(
            f"nothing can be compared: all channels of {output} are the same, as behind a norm whose weights are zero; "
            "train it, or export with --no-verify"
        )
    return spread


def _cosines(actual: FloatArray, expected: FloatArray) -> FloatArray:
    """The cosine of every row, 1 where both are zero."""
    ours, theirs = np.linalg.norm(actual, axis=1), np.linalg.norm(expected, axis=1)
    products = np.sum(actual * expected, axis=1)
    alike = np.asarray((ours == 0) & (theirs == 0), np.float64)
    return np.asarray(np.divide(products, ours * theirs, out=alike, where=ours * theirs > 0))
