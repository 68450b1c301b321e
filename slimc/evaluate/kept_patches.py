"""Which patches a model keeps, read from its graph and written into it: how a network that selects is verified.

A selection is a discontinuity. Two patches whose scores differ by less than rounding may change places, and the logits
then differ by more than rounding, though nothing is wrong. So a model is judged by two questions. Does it keep the patches
that the reference keeps? And, where it does not: are its logits right once it is made to keep them?

The TopK of a selection yields ``<block>.select.kept``, the rows kept [B, P + K] of the stream that enters it. On a copy of
the graph that value is made an output, to be read, or an input, to be set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from slimc.backends import ort
from slimc.errors import MismatchError, ModelFileError
from slimc.evaluate.comparison import Comparison, compare_outputs
from slimc.evaluate.graph_values import Open, run, values_of
from slimc.files.images import Images, only
from slimc.files.metadata import read_metadata
from slimc.files.reference import Reference
from slimc.ir import BoolArray, FloatArray, IndexArray

if TYPE_CHECKING:
    import onnx

SUFFIX = ".select.kept"

MIN_AGREEMENT = {"fp32": 0.99, "fp16": 0.98, "bf16": 0.94}
"""Least share of the reference's patches that a model keeps at any stage, over all inputs.

Around the cut, scores lie about their spread / (0.35 N) apart: 1.5 % of it for N = 196 patches. float32 errors are 10^-4
of that, so a patch that changes places is rare; float16's, 2^-11 a product, move one patch in every few images (99.6 % were
the least seen at any stage of the reference networks), and bfloat16's eight times as many (97.0 %).
"""


@dataclass(frozen=True, eq=False)
class Selected:
    """Outputs [n, ...] by name, and the patches that every selection kept [n, K], by grid position, best first."""

    outputs: Mapping[str, FloatArray]
    kept: tuple[IndexArray, ...]

    @property
    def logits(self) -> FloatArray:
        """Logits [n, classes], of a model that has them."""
        return self.outputs["logits"]


@dataclass(frozen=True)
class Agreement:
    """How far a model keeps the patches that the reference keeps.

    `stages` is the share of them, stage by stage, over all inputs; `equal` counts the inputs whose sets are all equal.
    """

    key: ClassVar[str] = "kept_patches"

    stages: tuple[float, ...]
    equal: int
    inputs: int

    def describe(self) -> str:
        """One line for people."""
        stages = ", ".join(f"{share:.1%}" for share in self.stages)
        return f"kept patches: {self.equal} of {self.inputs} inputs equal; by stage {stages}"


def run_selected(path: Path, images: Images, open_model: Open = ort.load) -> Selected:
    """Run the ONNX model at `path` and tell what it kept.

    Raises:
        ModelFileError: the model selects nothing, or takes other images.
    """
    model, names = _load(path)
    outputs = [info.name for info in model.graph.output]
    by_name = {info.name: info for info in values_of(model, names)}
    model.graph.output.extend(by_name[name] for name in names)
    found = run(model, images, {}, [*outputs, *names], open_model)
    return Selected({name: found[name] for name in outputs}, _positions(path, [found[name] for name in names]))


def run_given(
    path: Path, images: Images, kept: Sequence[IndexArray], open_model: Open = ort.load
) -> dict[str, FloatArray]:
    """Outputs [n, ...] of the ONNX model at `path`, by name, when it must keep the patches `kept`, each [n, K]."""
    model, names = _load(path)
    values = values_of(model, names)
    nodes = [node for node in model.graph.node if not set(names) & set(node.output)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.input.extend(values)
    rows = _rows(path, kept)
    outputs = [info.name for info in model.graph.output]
    return run(model, images, dict(zip(names, rows, strict=True)), outputs, open_model)


def compare_selected(
    path: Path,
    reference: Reference,
    tolerance: float,
    *,
    precision: str = "fp32",
    source: str | None = None,
    open_model: Open = ort.load,
) -> tuple[Comparison, Agreement]:
    """Compare the ONNX model at `path` with a reference that holds the patches kept.

    The outputs of inputs whose sets are not equal are those that the model computes for the reference's sets. Errors name
    the model `source`, by default its path.

    Raises:
        MismatchError: fewer patches agree than `MIN_AGREEMENT` of the precision.
        ModelFileError: see `slimc.evaluate.comparison.compare_outputs`.
    """
    found = run_selected(path, reference.images, open_model)
    agreement = agree(found.kept, reference.kept)
    least = MIN_AGREEMENT[precision]
    if min(agreement.stages) < least:
        stages = ", ".join(f"{share:.1%}" for share in agreement.stages)
        raise MismatchError(
            f"{source or path}: keeps {stages} of the reference's patches, stage by stage, expected at least {least:.0%}"
        )
    outputs = dict(found.outputs)
    same = equal_sets(found.kept, reference.kept)
    if not same.all():
        others = np.flatnonzero(~same)
        kept = [patches[others] for patches in reference.kept]
        for name, values in run_given(path, only(reference.images, others), kept, open_model).items():
            outputs[name] = outputs[name].copy()
            outputs[name][others] = values
    return compare_outputs(outputs, reference.outputs, tolerance), agreement


def equal_sets(kept: Sequence[IndexArray], expected: Sequence[IndexArray]) -> BoolArray:
    """Whether the sets of all stages are equal, input by input: [n]."""
    pairs = zip(kept, expected, strict=True)
    return np.asarray(np.all([(np.sort(a, 1) == np.sort(b, 1)).all(1) for a, b in pairs], axis=0))


def agree(kept: Sequence[IndexArray], expected: Sequence[IndexArray]) -> Agreement:
    """How far `kept` are the sets `expected`.

    Raises:
        ModelFileError: they are of other sizes: the reference belongs to another model.
    """
    if [a.shape for a in kept] != [b.shape for b in expected]:
        raise ModelFileError("the reference keeps other numbers of patches: it belongs to another model")
    stages = tuple(
        float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(first, second, strict=True)]))
        for first, second in zip(kept, expected, strict=True)
    )
    same = equal_sets(kept, expected)
    return Agreement(stages, int(same.sum()), len(same))


def _load(path: Path) -> tuple[onnx.ModelProto, list[str]]:
    """The model, and the names of what its selections keep, in order."""
    import onnx

    model = onnx.load(str(path))
    names = [name for node in model.graph.node for name in node.output if name.endswith(SUFFIX)]
    if not names:
        raise ModelFileError(f"{path}: selects no tokens")
    return model, names


def _positions(path: Path, chosen: Sequence[IndexArray]) -> tuple[IndexArray, ...]:
    """Grid positions of the patches, from the rows [n, P + K] that every selection keeps."""
    metadata = read_metadata(path)
    prefix, entering, kept = metadata.structure.prefix, None, []
    for rows in chosen:
        patches = rows[:, prefix:] - prefix
        if metadata.variant == "slim" and entering is not None:
            patches = np.take_along_axis(entering, patches, 1)
        entering = patches
        kept.append(patches)
    return tuple(kept)


def _rows(path: Path, kept: Sequence[IndexArray]) -> list[IndexArray]:
    """The rows [n, P + K] that every selection must keep, from the grid positions of the patches; undoes `_positions`."""
    metadata = read_metadata(path)
    prefix, entering, chosen = metadata.structure.prefix, None, []
    for patches in kept:
        rows = patches
        if metadata.variant == "slim" and entering is not None:
            rows = np.array([_find(row, before) for row, before in zip(patches, entering, strict=True)])
        entering = patches
        first = np.broadcast_to(np.arange(prefix), (len(patches), prefix))
        chosen.append(np.concatenate([first, rows + prefix], axis=1))
    return chosen


def _find(patches: IndexArray, before: IndexArray) -> IndexArray:
    """Where each of `patches` stands in `before`, a permutation of a set that contains them."""
    order = np.argsort(before)
    return np.asarray(order[np.searchsorted(before[order], patches)])
