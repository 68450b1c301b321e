"""How far two sets of logits are apart, and whether that is near enough.

Differences are measured in the logits' own spread: the standard deviation of an input's logits about their mean, as a
root mean square over the inputs. Absolute figures mean nothing across networks, as the scale of logits is arbitrary;
the range would grow with the number of classes; and what all logits of an input share changes no decision, so the mean
is taken out. A network with one output, a regression or a binary decision by a sigmoid, has no spread within an input: there
it is that across the inputs, and a decision is the output's sign.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from slimc.errors import MismatchError, ModelFileError
from slimc.ir import FloatArray, IndexArray


@dataclass(frozen=True, eq=False)
class Comparison:
    """Logits [n, classes] against those expected.

    `max_abs`, `mean_abs` and `p99_abs` are over all logits. `max_rel` is `max_abs` in units of `spread`. `cosine` is
    the smallest over the inputs. `top1_agreement` is the share of inputs with the same largest logit, `top5_agreement`
    the mean share of the five largest that are the same. `margin` is the smallest gap between the two largest expected
    logits; `clear` counts the inputs whose gap exceeds `max_abs`, and `clear_agreement` is the share of these with the
    same largest logit.
    """

    inputs: int
    classes: int
    tolerance: float
    spread: float
    max_abs: float
    mean_abs: float
    p99_abs: float
    max_rel: float
    cosine: float
    top1_agreement: float
    top5_agreement: float
    margin: float
    clear: int
    clear_agreement: float
    worst_input: int
    worst_of_input: FloatArray

    @property
    def passed(self) -> bool:
        """Whether no logit is further off than the tolerance allows."""
        return self.max_rel <= self.tolerance


def compare(actual: FloatArray, expected: FloatArray, tolerance: float) -> Comparison:
    """Compare logits [n, classes].

    Args:
        actual: what was computed.
        expected: the reference.
        tolerance: the largest difference allowed, as a share of the logits' spread (see the module).

    Raises:
        ModelFileError: the shapes differ, or the reference cannot be measured against: not finite, or all equal.
        MismatchError: there is nothing to compare, or `actual` is not finite.
    """
    _check(actual, expected, tolerance)
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    difference = np.abs(actual - expected)
    worst = difference.max(axis=1)
    spread = _spread(expected)
    same = _decisions(actual) == _decisions(expected)
    margins = _margins(expected)
    clear = margins > difference.max()
    return Comparison(
        inputs=len(expected),
        classes=expected.shape[1],
        tolerance=tolerance,
        spread=spread,
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        p99_abs=float(np.percentile(difference, 99)),
        max_rel=float(difference.max() / spread),
        cosine=float(_cosines(actual, expected).min()),
        top1_agreement=float(same.mean()),
        top5_agreement=_top_agreement(actual, expected, 5),
        margin=float(margins.min()),
        clear=int(clear.sum()),
        clear_agreement=float(same[clear].mean()) if clear.any() else 1.0,
        worst_input=int(worst.argmax()),
        worst_of_input=worst,
    )


def summary(found: Comparison) -> dict[str, Any]:
    """`found` as plain values, without the errors of single inputs."""
    values = {field.name: getattr(found, field.name) for field in fields(found) if field.name != "worst_of_input"}
    return {**values, "passed": found.passed}


def _check(actual: FloatArray, expected: FloatArray, tolerance: float) -> None:
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise ModelFileError(f"the tolerance {tolerance} is not a number of at least 0")
    if actual.shape != expected.shape or expected.ndim != 2:
        raise ModelFileError(
            f"logits {list(actual.shape)} cannot be compared with a reference {list(expected.shape)}: "
            "the reference belongs to another model"
        )
    if expected.size == 0:
        raise MismatchError("nothing was compared: the reference is empty")
    if not np.isfinite(expected).all():
        raise ModelFileError("the reference cannot be measured against: it holds NaN or infinite logits")
    bad = np.flatnonzero(~np.isfinite(actual).all(axis=1))
    if bad.size:
        raise MismatchError(f"NaN or infinite logits for {bad.size} of {len(actual)} inputs, first input {bad[0]}")


def _spread(expected: FloatArray) -> float:
    """The spread of logits that are expected (see the module).

    Raises:
        ModelFileError: there is none.
    """
    spread = float(np.sqrt(expected.var(axis=1).mean())) if expected.shape[1] > 1 else float(expected.std())
    if spread == 0.0:
        raise ModelFileError(
            f"nothing can be compared: all outputs of every input are {expected.flat[0]:g}, as of a head that was "
            "initialised with zeros and never trained; train it, or export with --no-verify"
        )
    return spread


def _decisions(logits: FloatArray) -> IndexArray:
    """The class [n] that every input is given: that of the largest logit, or the sign of the only one."""
    if logits.shape[1] == 1:
        return np.asarray(logits[:, 0] > 0, np.int64)
    return np.asarray(logits.argmax(axis=1))


def _margins(expected: FloatArray) -> FloatArray:
    """Gap between the two largest logits of every input, or of the only one to zero."""
    if expected.shape[1] == 1:
        return np.abs(expected[:, 0])
    second, first = np.partition(expected, -2, axis=1)[:, -2:].T
    return np.asarray(first - second)


def _cosines(actual: FloatArray, expected: FloatArray) -> FloatArray:
    norms = np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
    products = np.sum(actual * expected, axis=1)
    return np.asarray(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0))


def _top_agreement(actual: FloatArray, expected: FloatArray, count: int) -> float:
    count = min(count, expected.shape[1])
    ours = np.argsort(-actual, axis=1, kind="stable")[:, :count]
    theirs = np.argsort(-expected, axis=1, kind="stable")[:, :count]
    return float(np.mean([len(set(a) & set(b)) / count for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)]))
