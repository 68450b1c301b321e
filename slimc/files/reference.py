"""The reference beside a model: inputs and what the PyTorch network made of them, for machines without torch.

``model.reference.npz`` holds `images` [n, 3, H, W] float32, `logits` [n, classes] float32 where the model has these, every
other output as `output:<name>` [n, ...] float32, and `facts`, a JSON text; of a network that selects tokens also `kept_0`,
`kept_1`, ... [n, K] int64, the patches that each stage keeps; of one that decides for each image what runs also
`decided:<value of the graph>` [n, decisions] bool.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slimc.errors import ModelFileError
from slimc.files.images import Images, StreamedImages
from slimc.ir import BoolArray, FloatArray, IndexArray

_DECIDED, _OUTPUT = "decided:", "output:"


@dataclass(frozen=True, eq=False)
class Reference:
    """Inputs, expected outputs by name, and facts: `source_sha256`, `variant`, `seed`, `tolerance` (of an output's spread).

    `kept` are the patches that each selection keeps, [n, K] by grid position; empty where nothing is selected. `decisions`
    are what a network decides, [n, decisions] by the name of the graph's value; the fact `exact` then says for which
    inputs the compiled network can decide so. Images of files are read when they are wanted; a stored reference holds all.
    """

    images: Images
    outputs: Mapping[str, FloatArray]
    facts: Mapping[str, Any]
    kept: tuple[IndexArray, ...] = ()
    decisions: Mapping[str, BoolArray] = field(default_factory=dict)

    @property
    def logits(self) -> FloatArray:
        """Logits [n, classes], of a model that has this output."""
        return self.outputs["logits"]

    def file_of(self, number: int) -> Path | None:
        """The image that input `number` is; none where it is a seeded one, or nobody knows."""
        if not isinstance(self.images, StreamedImages) or number < len(self.images.held):
            return None
        return self.images.files[number - len(self.images.held)]


def reference_path(model: Path) -> Path:
    """Where the reference of the model or engine at `model` lies."""
    return model.with_suffix(".reference.npz")


def write_reference(path: Path, reference: Reference) -> None:
    """Write `reference` to `path`, not compressed: noise would not shrink. The same reference gives the same bytes."""
    facts = np.array(json.dumps(dict(reference.facts), sort_keys=True))
    kept: dict[str, Any] = {f"kept_{stage}": array for stage, array in enumerate(reference.kept)}
    decisions: dict[str, Any] = {f"{_DECIDED}{name}": array for name, array in reference.decisions.items()}
    logits: dict[str, Any] = {name: array for name, array in reference.outputs.items() if name == "logits"}
    others: dict[str, Any] = {f"{_OUTPUT}{name}": a for name, a in reference.outputs.items() if name != "logits"}
    with path.open("wb") as file:
        np.savez(file, images=reference.images[:], **logits, facts=facts, **kept, **decisions, **others)


def read_reference(path: Path) -> Reference:
    """Read the reference at `path`.

    Raises:
        ModelFileError: it is missing, damaged, or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            images, outputs = content["images"], _outputs(content)
            facts = json.loads(str(content["facts"]))
            kept = tuple(content[f"kept_{stage}"] for stage in range(sum(n.startswith("kept_") for n in content.files)))
            decided = [name for name in content.files if name.startswith(_DECIDED)]
            decisions = {name.removeprefix(_DECIDED): content[name] for name in decided}
    except FileNotFoundError:
        raise ModelFileError(f"{path}: no such reference; slimc export writes it beside the model") from None
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{path}: not a reference that slimc wrote ({type(error).__name__})") from None
    if images.ndim != 4 or images.dtype != np.float32 or not isinstance(facts, dict) or not outputs:
        raise ModelFileError(
            f"{path}: not a reference that slimc wrote (images {images.shape}, outputs {list(outputs)})"
        )
    for name, array in outputs.items():
        axes = (2,) if name in ("logits", "features") else (3, 4)
        if array.ndim not in axes or len(array) != len(images) or array.dtype != np.float32:
            shapes = f"shapes {images.shape} and {array.shape}" if name == "logits" else f"{name} {array.shape}"
            raise ModelFileError(f"{path}: not a reference that slimc wrote ({shapes})")
    if any(array.ndim != 2 or len(array) != len(images) or array.dtype != np.int64 for array in kept):
        raise ModelFileError(f"{path}: not a reference that slimc wrote (patches kept {[a.shape for a in kept]})")
    if any(array.ndim != 2 or len(array) != len(images) or array.dtype != bool for array in decisions.values()):
        raise ModelFileError(f"{path}: not a reference that slimc wrote (decisions of other shapes)")
    if decisions and len(facts.get("exact", ())) != len(images):
        raise ModelFileError(f"{path}: not a reference that slimc wrote (decisions without exact inputs)")
    return Reference(images, outputs, facts, kept, decisions)


def _outputs(content: Mapping[str, Any]) -> dict[str, FloatArray]:
    """The outputs that a file holds, logits first."""
    found = {"logits": content["logits"]} if "logits" in content else {}
    others = [name for name in content if name.startswith(_OUTPUT)]
    return {**found, **{name.removeprefix(_OUTPUT): content[name] for name in others}}
