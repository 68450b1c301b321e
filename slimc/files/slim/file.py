"""Slim files whole: the network, where it came from, and what reports tell of the network before it was slim."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slimc import ir
from slimc.errors import CheckpointError
from slimc.files.metadata import preprocessing_json, read_preprocessing
from slimc.files.slim.container import map_container, read_container, write_container
from slimc.files.slim.decode import decode
from slimc.files.slim.encode import encode
from slimc.files.slim.values import DamagedError, is_int, parse
from slimc.files.version import VERSION
from slimc.ir.preprocessing import Preprocessing

_DENSE = "dense."
_FACTS = {"system", "source_sha256", "preprocessing", "settings", "details", "heads", "limits", "version"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_CHANNELS = 1 << 20


@dataclass(frozen=True, eq=False)
class SlimFile:
    """What a slim file holds.

    Attributes:
        model: the network, without masks.
        system: whose network it is, as files call it.
        source_sha256: of the checkpoint that it was made of.
        preprocessing: how images become its input.
        settings: the budgets, keep rates or flags that were in force.
        details: further facts about the checkpoint.
        dense: the network with every mask at one, without its numbers; none where `model` is that network itself, as it was
            saved and not made slim.
        heads: the channels that every head of the network before kept, by block.
        limits: what its gates were limited to (`slimc.compiler.limits`); none where they have no limits.
        version: of the slimc that wrote it.
    """

    model: ir.Model
    system: str
    source_sha256: str
    preprocessing: Preprocessing
    settings: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    dense: ir.Model | None = None
    heads: Sequence[Sequence[int]] = ()
    limits: Mapping[str, Any] | None = None
    version: str = VERSION


def write_slim(path: Path, content: SlimFile) -> None:
    """Write a slim file; the same content gives the same bytes. Numbers are copied a tensor at a time.

    Raises:
        DamagedError: one of its numbers is NaN or infinite.
        OSError: it cannot be written.
    """
    network, tensors = encode(content.model)
    facts = {
        "system": content.system,
        "source_sha256": content.source_sha256,
        "preprocessing": preprocessing_json(content.preprocessing, content.model.image),
        "settings": dict(content.settings),
        "details": dict(content.details),
        "heads": [list(heads) for heads in content.heads],
        "limits": None if content.limits is None else dict(content.limits),
        "version": content.version,
    }
    texts = {"network": _text(network), "facts": _text(facts)}
    if content.dense is not None:
        dense, indices = encode(content.dense, shapes_only=True, prefix=_DENSE)
        texts["dense"], tensors = _text(dense), [*tensors, *indices]
    write_container(path, texts, tensors)


def read_slim(path: Path) -> SlimFile:
    """Read a slim file: into memory once, every number and every size checked. Nothing in it is executed.

    Raises:
        CheckpointError: it is missing, damaged, or something else.
    """
    try:
        return _read(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except DamagedError as error:
        raise CheckpointError(f"{path}: not a slim file that can be used: {error}") from None


def holds(path: Path, model: ir.Model) -> bool:
    """Whether the slim file at `path`, which this process has just written, holds `model`, number by number.

    Memory does not grow by the size of the file.

    Raises:
        DamagedError: it is no slim file.
        OSError: it cannot be read.
    """
    texts, arrays, forget = map_container(path)
    own = {name: array for name, array in arrays.items() if not name.startswith(_DENSE)}
    return _same(decode(parse(texts["network"]), own, finite=True), model, forget)


def _same(first: Any, second: Any, forget: Callable[[], None]) -> bool:  # noqa: ANN401 - whatever is in a model
    """Whether two nodes, or what they hold, are the same; what was read of the first is forgotten."""
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        alike = first.dtype == second.dtype and np.array_equal(first, second)
        forget()
        return alike
    if isinstance(first, tuple) and isinstance(second, tuple):
        pairs = zip(first, second, strict=False)
        return len(first) == len(second) and all(_same(one, other, forget) for one, other in pairs)
    if type(first) is type(second) and dataclasses.is_dataclass(first):
        names = [each.name for each in dataclasses.fields(first)]
        return all(_same(getattr(first, name), getattr(second, name), forget) for name in names)
    return bool(first == second)


def _read(path: Path) -> SlimFile:
    texts, arrays = read_container(path)
    missing = {"network", "facts"} - set(texts)
    if missing:
        raise DamagedError(f"it has no {min(missing)}")
    own = {name: array for name, array in arrays.items() if not name.startswith(_DENSE)}
    model = decode(parse(texts["network"]), own)
    dense = None
    indices = {name: array for name, array in arrays.items() if name.startswith(_DENSE)}
    if "dense" in texts:
        dense = decode(parse(texts["dense"]), indices, shapes=True)
        _check_dense(model, dense)
    elif indices:
        raise DamagedError("it has arrays of a network that it does not have")
    return _with_facts(model, dense, parse(texts["facts"]))


def _check_dense(model: ir.Model, dense: ir.Model) -> None:
    """The network before can only be one of the same kind."""
    same = [(each.image, each.dim, len(each.blocks), [o.name for o in each.outputs]) for each in (model, dense)]
    if same[0] != same[1]:
        raise DamagedError("it was made of another network than it says")


def _with_facts(model: ir.Model, dense: ir.Model | None, facts: object) -> SlimFile:
    if not isinstance(facts, dict) or set(facts) != _FACTS:
        raise DamagedError(f"its facts are something else than {', '.join(sorted(_FACTS))}")
    texts = [facts[name] for name in ("system", "source_sha256", "version")]
    mappings = [facts["settings"], facts["details"], facts["limits"] or {}]
    plain = all(isinstance(text, str) and len(text) < 100 for text in texts)
    if not plain or not _SHA256.fullmatch(texts[1]) or not all(isinstance(each, dict) for each in mappings):
        raise DamagedError("its facts about where it came from cannot be read")
    try:
        preprocessing = read_preprocessing(facts["preprocessing"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise DamagedError("it does not say how images become its inputs") from None
    if len(preprocessing.mean) != model.embedding.channels:
        raise DamagedError(f"its means are of {len(preprocessing.mean)} channels")
    return SlimFile(
        model=model,
        system=texts[0],
        source_sha256=texts[1],
        preprocessing=preprocessing,
        settings=mappings[0],
        details=mappings[1],
        dense=dense,
        heads=_heads(facts["heads"], 0 if dense is None else len(model.blocks)),
        limits=facts["limits"],
        version=texts[2],
    )


def _heads(found: object, blocks: int) -> tuple[tuple[int, ...], ...]:
    """Channels of heads by block."""
    if not isinstance(found, list) or len(found) != blocks or not all(isinstance(block, list) for block in found):
        raise DamagedError("it does not say what its heads were, block by block")
    if not all(is_int(width) and 0 <= width < _MOST_CHANNELS for block in found for width in block):
        raise DamagedError("its heads were of widths that there are not")
    return tuple(map(tuple, found))


def _text(values: object) -> str:
    return json.dumps(values, separators=(",", ":"), allow_nan=False)
