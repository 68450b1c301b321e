"""Is an artefact, a model or an engine, the same as a reference says? All outputs, and whatever it chooses on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from slimc.backends.base import run_outputs
from slimc.errors import MismatchError
from slimc.evaluate.comparison import Comparison, compare_outputs
from slimc.evaluate.gate_decisions import Exactness, compare_decided
from slimc.evaluate.graph_values import Open
from slimc.evaluate.kept_patches import Agreement, compare_selected
from slimc.files.images import only
from slimc.files.reference import Reference
from slimc.ir import BoolArray

DOUBT = {"fp32": 1e-4, "fp16": 3e-3, "bf16": 2.4e-2}
"""Gap between scores, in their standard deviation, below which rounding may let two patches change places: a dozen
roundings of the precision, or a hundred in float32, where that costs no input.
"""


Choices = Agreement | Exactness


def compare_with(
    path: Path, reference: Reference, tolerance: float, *, open_model: Open, precision: str, source: str
) -> tuple[Comparison, Choices | None]:
    """Compare the model or engine at `path`, which `open_model` loads, with a reference.

    Also how far the kept patches or decisions agree, where the reference holds any and the artefact is a model. An engine
    does not let the patches that it keeps be read: it is judged by the inputs on which they are not in doubt. Errors name
    the artefact `source`.

    Raises:
        MismatchError, ModelFileError: see `compare_selected` and `slimc.evaluate.comparison.compare_outputs`.
    """
    if reference.kept and path.suffix == ".onnx":
        return compare_selected(path, reference, tolerance, precision=precision, source=source, open_model=open_model)
    if reference.decisions:
        return compare_decided(path, reference, tolerance, precision=precision, source=source, open_model=open_model)
    judged = np.flatnonzero(_beyond_doubt(reference, precision))
    expected = {name: values[judged] for name, values in reference.outputs.items()}
    found = run_outputs(open_model(path), only(reference.images, judged), source)
    return compare_outputs(found, expected, tolerance).numbered(judged), None


@contextmanager
def not_written(output: Path) -> Iterator[None]:
    """Let mismatches that the body finds say that `output` was not written."""
    try:
        yield
    except MismatchError as error:
        raise MismatchError(f"{output}: not written: {str(error).removeprefix(f'{output}: ')}") from None


def _beyond_doubt(reference: Reference, precision: str) -> BoolArray:
    """The inputs [n] whose selections are surer than the doubt of the precision, or the surest where none is."""
    margins = np.asarray(reference.facts.get("margins", np.full(len(reference.images), np.inf)))
    return np.asarray(margins >= min(DOUBT[precision], margins.max(initial=0.0)))
