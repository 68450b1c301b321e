"""The JSON beside an engine: what a plan does not tell about itself, and what must fit before it is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimc.backends.base import TensorSpec
from slimc.backends.fusion import BlockFusion, Kernel
from slimc.errors import ModelFileError

SUFFIX = ".engine"


@dataclass(frozen=True)
class EngineFacts:
    """What an engine was built from, for and with.

    `source_sha256` is that of the ONNX file as it was given, `checkpoint_sha256` that of the checkpoint behind it.
    No targets: a portable engine for SM80 and newer. `kept_float32` are weights and products that half precision
    could not hold.
    `preprocessing` is the model's (`slimc.files.metadata.preprocessing_json`); none in engines that do not say it.
    """

    slimc: str
    backend: str
    version: str
    targets: tuple[str, ...]
    precision: str
    variant: str
    source_sha256: str
    checkpoint_sha256: str
    plan_sha256: str
    plan_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kernels: tuple[Kernel, ...]
    blocks: tuple[BlockFusion, ...]
    kept_float32: Mapping[str, str]
    preprocessing: Mapping[str, Any] | None = None


def facts_path(engine: Path) -> Path:
    """Where the JSON of the engine at `engine` lies."""
    return engine.with_name(f"{engine.name}.json")


def to_json(facts: EngineFacts) -> dict[str, Any]:
    """`facts` as plain values."""
    return asdict(facts)


def write_facts(path: Path, facts: EngineFacts) -> None:
    """Write `facts` as JSON to `path`."""
    path.write_text(json.dumps(to_json(facts), indent=1) + "\n", encoding="utf-8")


def read_engine(path: Path) -> tuple[bytes, EngineFacts]:
    """The plan at `path` and its facts, checked against each other.

    Raises:
        ModelFileError: either is missing or damaged, or they do not belong together.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelFileError(f"{path}: no such engine") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None
    facts = _read_facts(facts_path(path))
    if len(data) != facts.plan_bytes:
        kind = "truncated" if len(data) < facts.plan_bytes else "another engine"
        raise ModelFileError(f"{path}: {kind}: {len(data)} bytes, but {facts_path(path).name} says {facts.plan_bytes}")
    if hashlib.sha256(data).hexdigest() != facts.plan_sha256:
        raise ModelFileError(f"{path}: damaged, or another engine than {facts_path(path).name} describes")
    return data, facts


def _read_facts(path: Path) -> EngineFacts:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return EngineFacts(
            **{
                **values,
                "targets": tuple(values["targets"]),
                "inputs": tuple(_spec(value) for value in values["inputs"]),
                "outputs": tuple(_spec(value) for value in values["outputs"]),
                "kernels": tuple(Kernel(k["name"], k["kind"], tuple(k["nodes"])) for k in values["kernels"]),
                "blocks": tuple(BlockFusion(**{**b, "lost": tuple(b["lost"])}) for b in values["blocks"]),
            }
        )
    except FileNotFoundError:
        raise ModelFileError(f"{path}: missing; slimc build-engine writes it beside the engine") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: not the description of an engine ({type(error).__name__})") from None


def _spec(value: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(value["name"], tuple(value["shape"]), value["dtype"])
