"""Running a model with values of its graph read out or set: how choices that a network makes are verified."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slimc.backends.base import Array, Session
from slimc.errors import ModelFileError
from slimc.files.images import Images
from slimc.files.output import scratch

if TYPE_CHECKING:
    import onnx

Open = Callable[[Path], Session]


def values_of(model: onnx.ModelProto, names: Sequence[str]) -> list[onnx.ValueInfoProto]:
    """Name, type and shape of values of the graph."""
    known = {info.name: info for info in model.graph.value_info}
    if not set(names) <= set(known):
        import onnx

        inferred = onnx.shape_inference.infer_shapes(model)
        known = {info.name: info for info in inferred.graph.value_info}
    return [known[name] for name in names]


def run(
    model: onnx.ModelProto, images: Images, given: Mapping[str, Array], outputs: Sequence[str], open_model: Open
) -> dict[str, Array]:
    """Outputs [n, ...] of `images` [n, 3, height, width] by name, in batches of the model's size; the last is filled."""
    import onnx

    with scratch() as directory:
        file = directory / "model.onnx"
        onnx.save(model, str(file), save_as_external_data=model.ByteSize() > 2**31 - 2**26)
        session = open_model(file)
    spec = next(spec for spec in session.inputs if spec.name == "images")
    if images.shape[1:] != spec.shape[1:]:
        raise ModelFileError(
            f"the model takes images {list(spec.shape[1:])}, but was given {list(images.shape[1:])}: "
            "the images belong to another model"
        )
    size, results = spec.shape[0], []
    for start in range(0, len(images), size):
        indices = np.minimum(np.arange(start, start + size), len(images) - 1)
        feeds = {"images": images[indices], **{name: array[indices] for name, array in given.items()}}
        batch = session.run(feeds)
        results.append([batch[name][: len(images) - start] for name in outputs])
    parts = zip(*results, strict=True)
    return {name: np.concatenate(part) for name, part in zip(outputs, parts, strict=True)}
