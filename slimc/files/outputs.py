"""What the outputs of a model are, which their names tell: see `slimc.ir.Output`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"(?P<kind>logits|features|tokens|blocks\.(?P<block>\d+))(?P<layout>:nchw)?")


@dataclass(frozen=True)
class OutputFacts:
    """One output of a model.

    Attributes:
        name: what the graph calls it, and ``--outputs``.
        shape: with the batch first.
        layout: "NC", "NLC" (patches, then channels) or "NCHW".
        meaning: a few words for people.
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    meaning: str


def is_output(name: str) -> bool:
    """Whether slimc calls an output so."""
    return _NAME.fullmatch(name) is not None


def describe_output(name: str, shape: tuple[int, ...]) -> OutputFacts:
    """What the output `name` of this shape is."""
    found = _NAME.fullmatch(name)
    if found is None:
        return OutputFacts(name, shape, "", "of a model that slimc did not write")
    if found["kind"] in _FLAT:
        return OutputFacts(name, shape, "NC", _FLAT[found["kind"]])
    where = "the last norm" if found["block"] is None else f"block {found['block']}"
    layout = "NCHW" if found["layout"] else "NLC"
    return OutputFacts(name, shape, layout, f"the patches behind {where}, in the order of the grid")


_FLAT = {"logits": "one for every class", "features": "what the head reads: the class token or a pool"}
