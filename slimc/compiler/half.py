"""A float32 model becomes a half-precision one, with everything that float16 could not hold left in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as oir

from slimc.backends import ort
from slimc.compiler.reference import SEED
from slimc.emit.precision import Precision, stored_in_half, to_half
from slimc.evaluate.ranges import largest_values
from slimc.files.images import Images, seeded_images

_INPUTS = 4
_UNMEASURED = (
    "float16 holds 65504, and how large results get was not measured: onnxruntime is not installed "
    "(pip install 'slimc[cpu]')"
)


@dataclass(frozen=True)
class Narrowed:
    """What stayed in float32, and why, by the name of the weight or product; `warnings` are about what is not known."""

    kept: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def narrow(model: oir.Model, precision: Precision, images: Images | None) -> Narrowed:
    """Rewrite the float32 `model` in place to `precision`.

    Args:
        model: which slimc emitted.
        precision: fp32 leaves it as it is.
        images: inputs [n, channels, height, width] to measure the range of its values on; None takes seeded noise.
    """
    if precision == "fp32":
        return Narrowed({})
    largest: dict[str, float] = {}
    warnings: tuple[str, ...] = ()
    if precision == "fp16" and ort.is_installed():
        if images is None:
            shape = model.graph.inputs[0].shape
            assert shape is not None
            channels, height, width = (int(size) for size in shape.numpy()[1:])
            images = seeded_images(_INPUTS, (height, width), SEED, channels)
        names = [str(value.name) for value in stored_in_half(model, precision)]
        largest = largest_values(model, names, images)
    elif precision == "fp16":
        warnings = (_UNMEASURED,)
    kept = to_half(model, precision, largest)
    return Narrowed({item.name: item.reason for item in kept}, warnings)
