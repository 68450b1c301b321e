"""Slim files to read: of random networks, and sound ones with something in them changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from slimc import ir
from slimc.files.slim import SlimFile, write_slim
from slimc.ir.preprocessing import Preprocessing
from tests.plain_networks import plain_network

Change = Callable[[dict[str, Any]], None]
"""Changes a header whose texts of JSON are parsed."""

_PARSED = ("slimc.network", "slimc.dense", "slimc.facts")


def single(model: ir.Model) -> ir.Model:
    """`model` in float32."""
    return ir.map_arrays(model, lambda array: array.astype(np.float32))


def content_of(model: ir.Model, **others: Any) -> SlimFile:
    """A slim file of `model`."""
    facts: dict[str, Any] = {"settings": {"architecture": "random"}, "details": {"found": [1.5, None, "text"]}}
    return SlimFile(model, "plain_vit", "0123456789abcdef" * 4, Preprocessing(), **{**facts, **others})


def rich_network(seed: int = 0, **features: Any) -> ir.Model:
    """A network with heads of several widths, gates, rotations, rows and a pool."""
    wanted = {
        "rotation": "shared",
        "gated": True,
        "ragged": True,
        "rows": True,
        "zero_rows": 3,
        "live": True,
        "patches": True,
    }
    return single(plain_network(seed, **{**wanted, **features}))


def whole(path: Path) -> bytes:
    """A sound slim file at `path`."""
    model = rich_network(pool="latent")
    write_slim(path, content_of(model, dense=model, heads=[(4, 0, 6)] * len(model.blocks)))
    return path.read_bytes()


def changed(content: bytes, change: Change, data: Callable[[bytes], bytes] = bytes) -> bytes:
    """The slim file `content` with another header, or other numbers, and the digest that it has then."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    texts = header["__metadata__"]
    for name in _PARSED:
        if name in texts:
            texts[name] = json.loads(texts[name])
    change(header)
    for name in _PARSED:
        if not isinstance(texts.get(name, ""), str):
            texts[name] = json.dumps(texts[name])
    return signed(json.dumps(header, separators=(",", ":")).encode(), data(content[8 + length :]))


def signed(header: bytes, data: bytes) -> bytes:
    """A slim file of this header and these numbers, its digest right."""
    header += b" " * (-len(header) % 8)
    start = header.find(b'"slimc.sha256":"') + len(b'"slimc.sha256":"')
    blank = header[:start] + b"0" * 64 + header[start + 64 :]
    length = len(header).to_bytes(8, "little")
    digest = hashlib.sha256(length + blank + data).hexdigest().encode()
    return length + header[:start] + digest + header[start + 64 :] + data
