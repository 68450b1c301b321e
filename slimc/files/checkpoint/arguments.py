"""The training arguments in a checkpoint, as plain Python values in whichever guise the training script saved them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from slimc.files.checkpoint import numpy_values
from slimc.files.checkpoint.recorded import Recorded, UnreadableError, is_module, mapping, sequence
from slimc.files.checkpoint.stored import Stored

if TYPE_CHECKING:
    import torch

# Where training scripts keep them, those of argparse first.
NAMES = ("args", "hyper_parameters", "config", "cfg", "hparams", "opt")
# Where timm keeps what a network was trained with.
CONFIGURATIONS = ("pretrained_cfg", "default_cfg")
# Where it keeps the name of the network, beside the weights.
ARCHITECTURES = ("architecture", "arch")
_MOST_VALUES = 10_000
_DEEPEST = 8
_LONGEST_ARRAY = 1024
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
# Where configuration libraries keep what their objects hold: omegaconf's values and containers, ml_collections' fields.
_INNER = ("_content", "_fields")


class _Omitted:
    """Stands for a value that is no plain one."""


_OMITTED = _Omitted()


def find_arguments(places: Iterable[Mapping[Any, Any]]) -> tuple[str | None, dict[str, Any]]:
    """The first arguments in any of `places`, and the name they were found under; none and empty where there are none.

    Numbers of NumPy and torch are numbers, and so is text that is one; what is neither a number, text, nor made of such is
    left out. timm's configuration and name of the network come to the same level, where the file has them beside these.
    """
    places = list(places)
    configurations: dict[str, Any] = {
        name: place[name] for place in places for name in ARCHITECTURES if isinstance(place.get(name), str)
    }
    configurations |= {
        name: plain for place in places for name in CONFIGURATIONS if (plain := _plain_arguments(place.get(name)))
    }
    for place in places:
        for name in NAMES:
            found = _plain_arguments(place.get(name))
            if found:
                source, arguments = _merged(name, found)
                return source, {**configurations, **arguments}
    return None, configurations


def _merged(name: str, found: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Arguments that are saved among others, as Lightning does with what a constructor took, come to the same level."""
    for inner in NAMES:
        if isinstance(found.get(inner), dict):
            return f"{name}.{inner}", {**found[inner], **{key: value for key, value in found.items() if key != inner}}
    return name, found


def _plain_arguments(value: object) -> dict[str, Any]:
    plain = _Plain().value(value, 0)
    return plain if isinstance(plain, dict) else {}


class _Plain:
    """Makes plain values, of which there may be only so many: objects of a pickle may hold themselves."""

    def __init__(self) -> None:
        self._left = _MOST_VALUES

    def value(self, value: object, depth: int) -> Any:  # noqa: ANN401
        """The plain value, or `_OMITTED`."""
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            return _OMITTED
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, str):
            return _number(value)
        if isinstance(value, Stored):
            return _tensor(value)
        if isinstance(value, Recorded):
            return self.recorded(value, depth)
        if isinstance(value, dict):
            return self.entries(value, depth)
        return self.elements(value, depth) if isinstance(value, (list, tuple)) else _OMITTED

    def recorded(self, value: Recorded, depth: int) -> Any:  # noqa: ANN401
        if numpy_values.is_scalar(value) or numpy_values.is_array(value):
            return _array(value)
        if is_module(value):
            return _OMITTED
        if value.name == "decimal.Decimal" and len(value.arguments) == 1:
            return self.value(value.arguments[0], depth + 1)
        elements = sequence(value)
        if elements is not None:
            return self.elements(elements, depth)
        entries = mapping(value)
        return _OMITTED if entries is None else self.entries(entries, depth)

    def entries(self, entries: Mapping[Any, Any], depth: int) -> Any:  # noqa: ANN401
        if "_val" in entries:
            return self.value(entries["_val"], depth + 1)
        for inner in _INNER:
            if inner in entries:
                return self.value(entries[inner], depth + 1)
        plain = {}
        for key, each in entries.items():
            if self._left < 0:
                break
            made = self.value(each, depth + 1) if isinstance(key, str) else _OMITTED
            if made is not _OMITTED:
                plain[key] = made
        return plain

    def elements(self, elements: list[Any] | tuple[Any, ...], depth: int) -> Any:  # noqa: ANN401
        if len(elements) > _LONGEST_ARRAY:
            return _OMITTED
        plain = [self.value(each, depth + 1) for each in elements]
        # A list without some of its elements would be another list.
        return _OMITTED if any(each is _OMITTED for each in plain) else plain


def _number(text: str) -> object:
    """Text, or the number or word of Python or JSON that it spells."""
    stripped = text.strip()
    if stripped in _WORDS:
        return _WORDS[stripped]
    if len(stripped) > 40 or not _NUMBER.fullmatch(stripped):
        return text
    try:
        return json.loads(stripped)
    except ValueError:
        return float(stripped)


def _array(value: Recorded) -> Any:  # noqa: ANN401
    shape = numpy_values.shape_of(value)
    array = None if shape is None or math.prod(shape) > _LONGEST_ARRAY else numpy_values.array_of(value)
    if array is None:
        return _OMITTED
    # 0.7 in float16 or float32 is 0.7: the shortest number that is the same in that type.
    short = array.dtype.kind == "f" and array.dtype.itemsize < 8
    plain = array.astype(str).astype("f8").tolist() if short else array.tolist()
    if isinstance(plain, bytes):
        return _OMITTED
    return _number(plain) if isinstance(plain, str) else plain


def _tensor(stored: Stored) -> Any:  # noqa: ANN401
    import torch

    if math.prod(stored.shape) > _LONGEST_ARRAY:
        return _OMITTED
    try:
        tensor: torch.Tensor = stored.read()
    except (UnreadableError, RuntimeError):
        return _OMITTED
    if tensor.dtype.is_complex:
        return _OMITTED
    if tensor.dtype == torch.bfloat16:
        return _bfloat16(tensor)
    if tensor.dtype in (torch.float16, torch.float32):
        return tensor.numpy().astype(str).astype("f8").tolist()
    try:
        return tensor.tolist()
    except RuntimeError:
        return _OMITTED


def _bfloat16(tensor: torch.Tensor) -> Any:  # noqa: ANN401
    """Numbers of bfloat16 as the shortest that are the same in it; four digits are enough for all."""
    import numpy as np
    import torch

    plain = tensor.to(torch.float64).numpy().copy()
    for digits in (4, 3, 2, 1):
        short = np.array([float(f"{number:.{digits}g}") for number in plain.flat]).reshape(plain.shape)
        same = (torch.from_numpy(short).to(torch.bfloat16) == tensor).numpy()
        plain = np.where(same, short, plain)
    return plain.tolist()
