"""Checkpoints in tests/data with what the released code computed from them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from slimc.ir import FloatArray

DATA = Path(__file__).parent / "data"


@cache
def arrays(folder: str) -> dict[str, FloatArray]:
    """Images, logits and masks of the vector `folder`."""
    with np.load(DATA / folder / "io.npz") as content:
        return dict(content.items())


@cache
def meta(folder: str) -> dict[str, Any]:
    """What is known about the vector `folder`."""
    content: dict[str, Any] = json.loads((DATA / folder / "meta.json").read_text())
    return content
