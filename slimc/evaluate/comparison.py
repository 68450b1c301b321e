"""All outputs of a model against those expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from slimc.errors import ModelFileError
from slimc.evaluate.difference import Difference, differ
from slimc.evaluate.logits import LogitsDifference, compare
from slimc.ir import FloatArray, IndexArray


@dataclass(frozen=True, eq=False)
class Comparison:
    """All outputs of a model against those expected, one by one in `outputs`.

    `inputs` counts what was compared; `tolerance`, `spread`, `max_abs`, `mean_abs`, `p99_abs`, `max_rel`, `cosine` and
    `worst_input` are those of the output that is the furthest off (see `slimc.evaluate.difference.Difference`). `classes`,
    `top1_agreement`, `top5_agreement`, `margin`, `clear` and `clear_agreement` are of the logits (see
    `slimc.evaluate.logits.LogitsDifference`): a model without logits has none of them.
    """

    outputs: tuple[Difference, ...]

    @property
    def passed(self) -> bool:
        """Whether no output is further off than the tolerance allows."""
        return all(found.passed for found in self.outputs)

    @property
    def worst(self) -> Difference:
        """The output that is the furthest off."""
        return max(self.outputs, key=lambda found: found.max_rel)

    @property
    def logits(self) -> LogitsDifference | None:
        """Of the logits; none where there are none."""
        return next((found for found in self.outputs if isinstance(found, LogitsDifference)), None)

    @property
    def inputs(self) -> int:
        """Inputs that were compared."""
        return self.worst.inputs

    @property
    def tolerance(self) -> float:
        """The largest difference allowed, as a share of a spread."""
        return self.worst.tolerance

    @property
    def spread(self) -> float:
        """Of the output that is the furthest off."""
        return self.worst.spread

    @property
    def max_abs(self) -> float:
        """Its largest difference."""
        return self.worst.max_abs

    @property
    def mean_abs(self) -> float:
        """Its mean difference."""
        return self.worst.mean_abs

    @property
    def p99_abs(self) -> float:
        """The 99th percentile of its differences."""
        return self.worst.p99_abs

    @property
    def max_rel(self) -> float:
        """Its largest difference in units of its spread."""
        return self.worst.max_rel

    @property
    def cosine(self) -> float:
        """Its smallest cosine."""
        return self.worst.cosine

    @property
    def worst_input(self) -> int:
        """The input with its largest difference."""
        return self.worst.worst_input

    @property
    def classes(self) -> int:
        """Logits of an input."""
        return self._answers.classes

    @property
    def top1_agreement(self) -> float:
        """Share of inputs with the same largest logit."""
        return self._answers.top1_agreement

    @property
    def top5_agreement(self) -> float:
        """Mean share of the five largest logits that are the same."""
        return self._answers.top5_agreement

    @property
    def margin(self) -> float:
        """The smallest gap between the two largest expected logits."""
        return self._answers.margin

    @property
    def clear(self) -> int:
        """Inputs whose gap exceeds the largest difference."""
        return self._answers.clear

    @property
    def clear_agreement(self) -> float:
        """Share of these with the same largest logit."""
        return self._answers.clear_agreement

    @property
    def _answers(self) -> LogitsDifference:
        if self.logits is None:
            raise AttributeError(f"only logits decide anything, and there are none among {names_of(self)}")
        return self.logits

    def numbered(self, inputs: IndexArray) -> Comparison:
        """The same, where what was compared are only these `inputs` of all: the worst ones counted among all."""
        return Comparison(tuple(replace(found, worst_input=int(inputs[found.worst_input])) for found in self.outputs))


def names_of(found: Comparison) -> str:
    """The names of what was compared, for people."""
    return ", ".join(each.output for each in found.outputs)


def compare_outputs(
    actual: Mapping[str, FloatArray], expected: Mapping[str, FloatArray], tolerance: float
) -> Comparison:
    """Compare all outputs, in the order of `expected`; see `slimc.evaluate.difference.differ`.

    Raises:
        ModelFileError: there are other outputs than expected; see also `differ`.
        MismatchError: see `differ`.
    """
    if set(actual) != set(expected):
        ours, theirs = ", ".join(actual) or "none", ", ".join(expected) or "none"
        raise ModelFileError(
            f"outputs {ours} cannot be compared with a reference of {theirs}: it belongs to another model"
        )
    return Comparison(
        tuple(
            compare(actual[name], values, tolerance)
            if name == "logits"
            else differ(name, actual[name], values, tolerance)
            for name, values in expected.items()
        )
    )


def mismatch(found: Comparison) -> str:
    """What to say where `found` did not pass: which outputs are how far off."""
    wrong = [each for each in found.outputs if not each.passed]
    return ", ".join(f"{each.max_rel:.2e} of {each.unit}" for each in wrong)
