"""How far two sets of logits are apart (`slimc.evaluate.difference`), and how far they decide alike.

The decision of an input is the class of its largest logit. A network with one output, a regression or a binary decision by a
sigmoid, decides by the output's sign.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from slimc.errors import ModelFileError
from slimc.evaluate.difference import Difference, check, differ
from slimc.ir import FloatArray, IndexArray


@dataclass(frozen=True, eq=False)
class LogitsDifference(Difference):
    """Logits [n, classes] against those expected.

    `top1_agreement` is the share of inputs with the same largest logit, `top5_agreement` the mean share of the five largest
    that are the same. `margin` is the smallest gap between the two largest expected logits; `clear` counts the inputs whose
    gap exceeds `max_abs`, and `clear_agreement` is the share of these with the same largest logit.
    """

    top1_agreement: float
    top5_agreement: float
    margin: float
    clear: int
    clear_agreement: float

    @property
    def classes(self) -> int:
        """Logits of an input."""
        return self.shape[0]


def compare(actual: FloatArray, expected: FloatArray, tolerance: float) -> LogitsDifference:
    """Compare logits [n, classes].

    Args:
        actual: what was computed.
        expected: the reference.
        tolerance: the largest difference allowed, as a share of the logits' spread (see `slimc.evaluate.difference`).

    Raises:
        ModelFileError: the shapes differ, or the reference cannot be measured against: not finite, or all equal.
        MismatchError: there is nothing to compare, or `actual` is not finite.
    """
    check("logits", actual, expected, tolerance)
    if expected.ndim != 2:
        raise ModelFileError(f"logits {list(expected.shape)} are none; expected [n, classes]")
    found = differ("logits", actual, expected, tolerance)
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    same = _decisions(actual) == _decisions(expected)
    margins = _margins(expected)
    clear = margins > found.max_abs
    return LogitsDifference(
        **{field.name: getattr(found, field.name) for field in fields(found)},
        top1_agreement=float(same.mean()),
        top5_agreement=_top_agreement(actual, expected, 5),
        margin=float(margins.min()),
        clear=int(clear.sum()),
        clear_agreement=float(same[clear].mean()) if clear.any() else 1.0,
    )


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


def _top_agreement(actual: FloatArray, expected: FloatArray, count: int) -> float:
    count = min(count, expected.shape[1])
    ours = np.argsort(-actual, axis=1, kind="stable")[:, :count]
    theirs = np.argsort(-expected, axis=1, kind="stable")[:, :count]
    return float(np.mean([len(set(a) & set(b)) / count for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)]))
