"""Choosing the outputs of a model by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from slimc.errors import OptionError
from slimc.ir.nodes import Model
from slimc.ir.readout import Classifier, Output
from slimc.ir.rows import embedded_rows

_NAME = re.compile(r"(?P<kind>logits|features|tokens|blocks)(?:\.(?P<block>\d+))?(?P<layout>:nchw|:nlc)?")


def choose_outputs(model: Model, names: Sequence[str]) -> Model:
    """`model`, which no pass has changed, with the outputs of these `names`, in their order; see `slimc.ir.Output`.

    Blocks and parts of the classifier that none of them needs are left out.

    Raises:
        OptionError: the model has no such output, or one stands twice.
    """
    if not names:
        raise OptionError(f"--outputs: none is named; expected {describe_outputs(model)}")
    outputs = tuple(_output(model, name) for name in names)
    for output in outputs:
        if sum(output.name == other.name for other in outputs) > 1:
            raise OptionError(f"--outputs: {output.name} stands twice; name it once")
    blocks = model.blocks
    if all(output.kind == "blocks" for output in outputs):
        blocks = blocks[: 1 + max(output.block or 0 for output in outputs)]
    return replace(model, outputs=outputs, blocks=blocks, classifier=_needed(model.classifier, outputs))


def _needed(classifier: Classifier, outputs: Sequence[Output]) -> Classifier:
    """What `outputs` need of `classifier`."""
    kinds = {output.kind for output in outputs}
    if not kinds & {"logits", "features"}:
        return Classifier(classifier.norm if "tokens" in kinds else None, (), ())
    return classifier if "logits" in kinds else replace(classifier, heads=(), auxiliary=None)


def describe_outputs(model: Model) -> str:
    """The names of what `model` can yield, for messages."""
    names = ["logits"] if model.classifier.heads else []
    if model.classifier.rows or model.classifier.pool is not None:
        names.append("features")
    if not any(block.select is not None for block in model.blocks):
        names.append("tokens")
        if model.blocks:
            names.append(f"blocks.0 to blocks.{len(model.blocks) - 1}")
        names.append("the latter also as tokens:nchw or blocks.0:nchw")
    return ", ".join(names)


def _output(model: Model, name: str) -> Output:
    match = _NAME.fullmatch(name)
    if match is None or (match["kind"] == "blocks") != (match["block"] is not None):
        raise OptionError(f"--outputs: {name!r} is unknown; expected {describe_outputs(model)}")
    kind, block = match["kind"], None if match["block"] is None else int(match["block"])
    classifier = model.classifier
    has = {
        "logits": bool(classifier.heads),
        "features": bool(classifier.rows) or classifier.pool is not None,
        "tokens": not any(b.select is not None for b in model.blocks),
        "blocks": not any(b.select is not None for b in model.blocks) and (block or 0) < len(model.blocks),
    }
    if not has[kind] or (match["layout"] is not None and kind in ("logits", "features")):
        raise OptionError(f"--outputs: this network has no {name}; expected {describe_outputs(model)}")
    if kind in ("logits", "features"):
        return Output(kind)  # type: ignore[arg-type]
    rows = np.arange(model.prefix, embedded_rows(model), dtype=np.int64)
    layout = "NCHW" if match["layout"] == ":nchw" else "NLC"
    return Output(kind, block, rows, layout)  # type: ignore[arg-type]
