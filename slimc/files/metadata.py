"""What slimc writes into the metadata_props of an ONNX model, and reading it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimc.errors import ModelFileError
from slimc.files.outputs import OutputFacts, describe_output
from slimc.files.structure import Structure, from_json, to_json
from slimc.files.version import VERSION
from slimc.ir.preprocessing import CROP_PCT, INTERPOLATIONS, Preprocessing
from slimc.targets.count import Counts

if TYPE_CHECKING:
    import onnx

PREFIX = "slimc."


@dataclass(frozen=True)
class Metadata:
    """Where a model came from and what it is.

    `settings` are the budgets or keep rates, `details` the thresholds. `outputs` are in the order of the graph.
    """

    source_sha256: str
    system: str
    variant: str
    target: str
    settings: Mapping[str, Any]
    details: Mapping[str, Any]
    dense: Counts
    slim: Counts
    preprocessing: Preprocessing
    structure: Structure
    precision: str = "fp32"
    version: str = VERSION
    outputs: tuple[OutputFacts, ...] = ()


def to_props(metadata: Metadata) -> dict[str, str]:
    """`metadata` as metadata_props."""
    plain = {
        "version": metadata.version,
        "source_sha256": metadata.source_sha256,
        "system": metadata.system,
        "variant": metadata.variant,
        "target": metadata.target,
        "settings": json.dumps(dict(metadata.settings), sort_keys=True),
        "details": json.dumps(dict(metadata.details), sort_keys=True),
        "macs": json.dumps({"dense": metadata.dense.macs, "slim": metadata.slim.macs}),
        "params": json.dumps({"dense": metadata.dense.params, "slim": metadata.slim.params}),
        "preprocessing": json.dumps(preprocessing_json(metadata.preprocessing, metadata.structure.image)),
        "structure": to_json(metadata.structure),
        "precision": metadata.precision,
    }
    if [output.name for output in metadata.outputs] != ["logits"]:  # whose models were written before there were others
        plain["outputs"] = json.dumps([asdict(output) for output in metadata.outputs])
    return {PREFIX + key: value for key, value in plain.items()}


def preprocessing_json(preprocessing: Preprocessing, image: tuple[int, int]) -> dict[str, Any]:
    """How images become inputs, by timm's names: `input_size` is channels, height, width."""
    numbers = {"mean": list(preprocessing.mean), "std": list(preprocessing.std)}
    return {**asdict(preprocessing), **numbers, "input_size": [len(preprocessing.mean), *image]}


def read_preprocessing(values: Mapping[str, Any]) -> Preprocessing:
    """What `preprocessing_json` gave; models of slimc 0.1 say mean and standard deviation only.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    mean, std = (tuple(float(number) for number in values[key]) for key in ("mean", "std"))
    found = Preprocessing(
        mean, std, float(values.get("crop_pct", CROP_PCT)), str(values.get("interpolation", "bicubic"))
    )
    if len(mean) != len(std) or not 0 < found.crop_pct <= 1 or found.interpolation not in INTERPOLATIONS:
        raise ValueError(f"no preprocessing: {dict(values)}")
    return found


def read_metadata(model: str | Path) -> Metadata:
    """What an ONNX model that slimc wrote says about itself: where it comes from, what is left of it, how to feed it.

    Args:
        model: an ONNX model; its weights are not read.

    Raises:
        ModelFileError: it is no ONNX model, or slimc did not write it.

    Example:
        >>> metadata = slimc.read_metadata("digits.onnx")
        >>> metadata.variant, metadata.target, metadata.structure.image
        ('slim', 'cpu', (56, 56))
    """
    path = Path(model)
    import onnx
    from google.protobuf.message import DecodeError

    try:
        content = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        raise ModelFileError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ModelFileError(f"{path}: is a directory; expected an ONNX model") from None
    except (DecodeError, OSError, ValueError) as error:
        raise ModelFileError(f"{path}: not an ONNX model ({type(error).__name__})") from None
    props = {p.key.removeprefix(PREFIX): p.value for p in content.metadata_props if p.key.startswith(PREFIX)}
    if not props:
        raise ModelFileError(f"{path}: has no slimc metadata; expected a model that slimc export wrote")
    try:
        return replace(_parse(props), outputs=tuple(_output(value) for value in content.graph.output))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: its slimc metadata cannot be read ({error!r})") from None


def _output(value: onnx.ValueInfoProto) -> OutputFacts:
    """An output as the graph has it: its name tells the rest."""
    sizes = value.type.tensor_type.shape.dim
    return describe_output(value.name, tuple(size.dim_value for size in sizes))


def _parse(props: Mapping[str, str]) -> Metadata:
    macs, params, preprocessing = (json.loads(props[key]) for key in ("macs", "params", "preprocessing"))
    return Metadata(
        source_sha256=props["source_sha256"],
        system=props["system"],
        variant=props["variant"],
        target=props["target"],
        settings=json.loads(props["settings"]),
        details=json.loads(props["details"]),
        dense=Counts(macs["dense"], params["dense"]),
        slim=Counts(macs["slim"], params["slim"]),
        preprocessing=read_preprocessing(preprocessing),
        structure=from_json(props["structure"]),
        precision=props["precision"],
        version=props["version"],
    )
