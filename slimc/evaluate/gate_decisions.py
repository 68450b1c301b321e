"""Verifying a network that decides for each image what runs.

Two things are in the way of comparing logits. A network with capacities is exact only for images that stay within them; on
the others it is a stated approximation, whose error is reported and not judged. And a decision is a discontinuity: a logit
within rounding of its threshold may fall on either side, and everything after it then differs, though nothing is wrong. So
a model is judged by two questions. Does it decide as the reference does? And, where it does not: are its logits right once
it is made to?

The graph's values ``<block>.decided`` [B, n] and ``<block>.tokens`` [B, rows] are its decisions; with a capacity the rows
are those numbered by ``<block>.token_select.kept``. On a copy of the graph they are made outputs, to be read, or inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from slimc.backends import ort
from slimc.backends.base import Array, run_outputs
from slimc.errors import MismatchError, ModelFileError
from slimc.evaluate.comparison import Comparison, compare_outputs
from slimc.evaluate.graph_values import Open, run, values_of
from slimc.files.images import only
from slimc.files.reference import Reference
from slimc.ir import BoolArray, FloatArray, IndexArray

if TYPE_CHECKING:
    import onnx

MIN_AGREEMENT = {"fp32": 0.999, "fp16": 0.98, "bf16": 0.9}
"""Least share of the reference's decisions that a model takes alike, over the images within its limits.

Logits of decisions spread by about 1, so an error e of them turns over a share of about e. float32's is 1e-5, float16's a
few 2^-11, and bfloat16's eight times that; what was turned over moves later logits as well.
"""


@dataclass(frozen=True)
class Exactness:
    """How a network that decides for each image did on `images`.

    `exact` of them are within its limits, and on these it computes what the checkpoint does: `equal` of them with every
    decision its own, the others once close decisions are given. `agreement` is the share of equal decisions.
    `worst_other_over_spread` is the largest difference on the images beyond its limits, as a share of the output's spread;
    none where there is no such image.
    """

    key: ClassVar[str] = "decisions"

    images: int
    exact: int
    equal: int
    agreement: float
    worst_other_over_spread: float | None

    def describe(self) -> str:
        """One line for people."""
        text = f"exact on {self.exact} of {self.images} images ({self.agreement:.3%} of the decisions equal"
        text += f", all of them on {self.equal} images)"
        if self.worst_other_over_spread is not None:
            text += f"; worst error on the others {self.worst_other_over_spread:.2e} of the logits' spread"
        return text


def compare_decided(
    path: Path,
    reference: Reference,
    tolerance: float,
    *,
    precision: str = "fp32",
    source: str | None = None,
    open_model: Open = ort.load,
) -> tuple[Comparison, Exactness | None]:
    """Compare the model or engine at `path` with a reference that holds decisions, on the images within its limits.

    An engine's decisions cannot be read: its logits are compared as they are.

    Raises:
        MismatchError: no image is within the limits, or fewer decisions agree than `MIN_AGREEMENT` of the precision.
        ModelFileError: the model decides other things than the reference; see also `compare_outputs`.
    """
    exact = np.array(reference.facts["exact"], bool)
    if not exact.any():
        raise MismatchError(f"{source or path}: nothing was compared: none of {len(exact)} images is within its limits")
    expected = _some(reference.outputs, exact)
    if path.suffix != ".onnx":
        outputs = run_outputs(open_model(path), reference.images, source or str(path))
        return compare_outputs(_some(outputs, exact), expected, tolerance).numbered(np.flatnonzero(exact)), None
    outputs, decided = run_deciding(path, reference, open_model)
    same = {name: decided[name] == reference.decisions[name] for name in decided}
    share = float(np.mean(np.concatenate([equal[exact].ravel() for equal in same.values()]))) if same else 1.0
    if share < MIN_AGREEMENT[precision]:
        raise MismatchError(
            f"{source or path}: decides {share:.2%} of what the reference decides alike, "
            f"expected at least {MIN_AGREEMENT[precision]:.1%}"
        )
    alike = np.all([equal.all(1) for equal in same.values()], axis=0) if same else exact
    given = np.flatnonzero(exact & ~alike)
    judged = {name: values.copy() for name, values in outputs.items()}
    if len(given):
        for name, values in _run_given(path, reference, given, open_model).items():
            judged[name][given] = values
    found = compare_outputs(_some(judged, exact), expected, tolerance).numbered(np.flatnonzero(exact))
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise MismatchError(f"{source or path}: NaN or infinite {name} for an image beyond its limits")
    worst = _worst(outputs, reference, found, ~exact) if not exact.all() else None
    return found, Exactness(len(exact), int(exact.sum()), int((exact & alike).sum()), share, worst)


def _some(outputs: Mapping[str, FloatArray], inputs: BoolArray) -> dict[str, FloatArray]:
    """The outputs of some `inputs`."""
    return {name: values[inputs] for name, values in outputs.items()}


def _worst(outputs: Mapping[str, FloatArray], reference: Reference, found: Comparison, inputs: BoolArray) -> float:
    """The largest difference of any output on these `inputs`, as a share of its spread."""
    differences = {name: np.abs(outputs[name][inputs] - values[inputs]) for name, values in reference.outputs.items()}
    return max(float(differences[each.output].max() / each.spread) for each in found.outputs)


def _kept_name(name: str) -> str:
    return name.removesuffix(".tokens") + ".token_select.kept"


def _load(path: Path, reference: Reference) -> tuple[onnx.ModelProto, dict[str, onnx.ValueInfoProto]]:
    """The model, and those of its values that are decisions of the reference or number their rows."""
    import onnx

    model = onnx.load(str(path))
    produced = {name for node in model.graph.node for name in node.output}
    wanted = [name for name in reference.decisions if name in produced]
    wanted += [kept for name in wanted if (kept := _kept_name(name)) in produced and name.endswith(".tokens")]
    infos = dict(zip(wanted, values_of(model, wanted), strict=True))
    for name in wanted:
        width = infos[name].type.tensor_type.shape.dim[1].dim_value
        if name.endswith(".decided") and width != reference.decisions[name].shape[1]:
            raise ModelFileError(f"{path}: {name} are {width} decisions: the reference belongs to another model")
    return model, infos


def run_deciding(
    path: Path, reference: Reference, open_model: Open
) -> tuple[dict[str, FloatArray], dict[str, BoolArray]]:
    """Outputs [n, ...] by name, and what the model decided, in the form of the reference."""
    model, infos = _load(path, reference)
    outputs = [info.name for info in model.graph.output]
    model.graph.output.extend(infos.values())
    read = run(model, reference.images, {}, [*outputs, *infos], open_model)
    decided: dict[str, BoolArray] = {}
    for name in infos:
        if name in reference.decisions:
            kept = read.get(_kept_name(name)) if name.endswith(".tokens") else None
            decided[name] = read[name] if kept is None else _spread(read[name], kept, reference.decisions[name])
    return {name: read[name] for name in outputs}, decided


def _spread(used: BoolArray, kept: IndexArray, expected: BoolArray) -> BoolArray:
    """The decisions about all rows, given those about the rows `kept`.

    Where the reference uses more rows than are kept, they are taken to be its own: on an image within the limits the block
    does not run then, and nothing depends on them.
    """
    decided = np.zeros(expected.shape, bool)
    np.put_along_axis(decided, kept, used, axis=1)
    beyond = expected.sum(1) > kept.shape[1]
    decided[beyond] = expected[beyond]
    return decided


def _run_given(path: Path, reference: Reference, images: IndexArray, open_model: Open) -> dict[str, FloatArray]:
    """Outputs of some `images` of the reference when the model must decide as the reference does."""
    model, infos = _load(path, reference)
    nodes = [node for node in model.graph.node if not set(infos) & set(node.output)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.input.extend(infos.values())
    given: dict[str, Array] = {}
    for name in infos:
        if name in reference.decisions:
            given |= _inputs(name, reference.decisions[name][images], infos)
    outputs = [info.name for info in model.graph.output]
    return run(model, only(reference.images, images), given, outputs, open_model)


def _inputs(name: str, decided: BoolArray, infos: Mapping[str, onnx.ValueInfoProto]) -> dict[str, Array]:
    """The decision `name` as inputs: with a capacity, the rows that are used come first."""
    kept = _kept_name(name)
    if not name.endswith(".tokens") or kept not in infos:
        return {name: decided}
    count = infos[kept].type.tensor_type.shape.dim[1].dim_value
    rows = np.argsort(~decided, axis=1, kind="stable")[:, :count]
    return {name: np.take_along_axis(decided, rows, axis=1), kept: rows}
