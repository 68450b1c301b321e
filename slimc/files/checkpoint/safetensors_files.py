"""Safetensors files, whose metadata is text and stands for training arguments."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

from slimc.files.checkpoint.recorded import UnreadableError
from slimc.files.checkpoint.stored import Stored


def read_safetensors(path: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Tensors and metadata.

    Raises:
        UnreadableError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, framework="pt")
        metadata = file.metadata() or {}
        state = {}
        for key in file.keys():  # noqa: SIM118 - not a mapping
            part = file.get_slice(key)
            shape = tuple(part.get_shape())
            digits = "".join(filter(str.isdigit, str(part.get_dtype())[:3]))
            nbytes = math.prod(shape) * max(1, int(digits or 8) // 8)
            state[key] = Stored(shape, key, nbytes, partial(file.get_tensor, key))
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UnreadableError(f"not a readable safetensors file: {reason}") from None
    return state, {key: _parsed(value) for key, value in metadata.items()}


def _parsed(value: str) -> object:
    """A metadata value: numbers, booleans and lists as such."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
