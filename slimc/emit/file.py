"""Writing an emitted model to disk, checked, with external data where protobuf's 2 GB end."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as oir

from slimc.errors import InternalError

# Protobuf refuses messages of 2 GiB; the rest of the graph is far below the margin.
_INLINE_LIMIT = 2**31 - 2**26


def data_path(model: Path) -> Path:
    """Where the external data of the model at `model` lie, if it has any."""
    return model.with_name(f"{model.name}.data")


def write_model(model: oir.Model, path: Path, *, inline_limit: int = _INLINE_LIMIT) -> None:
    """Write `model` to `path`, its weights beside it when they exceed `inline_limit` bytes, and check what was written.

    The model is used up: its weights are released as soon as protobuf has its own copy, because serialising makes another.

    Raises:
        InternalError: the ONNX checker or its shape inference refuses the file.
    """
    if _weight_bytes(model) > inline_limit:
        oir.save(model, path, external_data=data_path(path).name)
    else:
        proto = oir.to_proto(model)
        for value in model.graph.initializers.values():
            value.const_value = None
        path.write_bytes(proto.SerializeToString())
        del proto
    check_file(path)


def save(model: oir.Model, path: Path) -> None:
    """Write `model` to `path` for this process to read: not checked, and kept as it is."""
    large = _weight_bytes(model) > _INLINE_LIMIT
    oir.save(model, path, external_data=data_path(path).name if large else None)


def _weight_bytes(model: oir.Model) -> int:
    weights = (value.const_value for value in model.graph.initializers.values())
    return sum(weight.nbytes for weight in weights if weight is not None)


def check_file(path: Path) -> None:
    """Run onnx.checker with full shape inference on the file at `path`.

    Raises:
        InternalError: it refuses the file.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InternalError(f"the emitted graph is not valid ONNX: {error}") from error
