"""Damaged and hostile checkpoints, made from a number each, so that every one can be made again."""

from __future__ import annotations

import io
import pickletools
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from safetensors.torch import save_file

from tests.checkpoints import Recipe, arguments, save, state_dict

TINY = Recipe(dim=4, heads=2, depth=1, hidden=4, classes=3, grid=(2, 2))
BUDGETS = {f"budget_{kind}": "0.7" for kind in ("attn", "mlp", "patch")}


def damaged(content: bytes, seed: int) -> bytes:
    """`content` with bytes flipped, cut out, cut off, doubled or overwritten."""
    chance = random.Random(seed)
    start = chance.randrange(len(content))
    end = min(len(content), start + chance.choice((1, 2, 8, 64, 512)))
    kind = chance.choice(("flip", "flip", "flip", "remove", "truncate", "double", "overwrite"))
    if kind == "flip":
        changed = bytearray(content)
        for _ in range(chance.choice((1, 1, 1, 4))):
            changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        return bytes(changed)
    if kind == "truncate":
        return content[:start]
    middle = {"remove": b"", "double": content[start:end] * 2, "overwrite": chance.randbytes(end - start)}[kind]
    return content[:start] + middle + content[end:]


@cache
def sound(container: str) -> bytes:
    """A whole checkpoint."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "whole.pth"
        if container == "safetensors":
            save_file(state_dict(TINY), path, metadata=BUDGETS)
        else:
            content = {"model": state_dict(TINY), "epoch": 3, "args": arguments()}
            save(path, content, legacy=container == "legacy")
        return path.read_bytes()


def with_pickle(change: Callable[[bytes], bytes]) -> bytes:
    """A zip archive that is sound but for its pickle, whose checksum is right as well."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(sound("zip"))) as source, zipfile.ZipFile(stream, "w") as archive:
        for info in source.infolist():
            content = source.read(info)
            archive.writestr(info.filename, change(content) if info.filename.endswith("data.pkl") else content)
    return stream.getvalue()


def in_zip(pickled: bytes) -> bytes:
    """`pickled` as the pickle of a zip archive that torch.save could have written."""
    return with_pickle(lambda _: pickled)


def program(seed: int) -> bytes:
    """A pickle of random operations, among them calls of what runs code."""
    chance = random.Random(seed)
    names = ("os\nsystem\n", "builtins\neval\n", "collections\nOrderedDict\n", "torch._utils\n_rebuild_tensor_v2\n")
    numbers = {"int4": "<i", "uint1": "<B", "uint2": "<H", "uint4": "<I", "uint8": "<Q", "float8": ">d"}
    made = [b"\x80\x02"]
    for _ in range(chance.choice((5, 30, 200))):
        operation = chance.choice(pickletools.opcodes)
        code, argument = operation.code.encode("latin-1"), operation.arg
        if operation.name in ("GLOBAL", "INST"):
            code += chance.choice(names).encode()
        elif argument is not None and argument.name in numbers:
            most = 1 << 8 * struct.calcsize(numbers[argument.name]) - 1
            number = chance.choice((0, 1, 2, most - 1)) % 256 ** struct.calcsize(numbers[argument.name])
            code += struct.pack(numbers[argument.name], number)
        elif argument is not None:
            size = {"1": 1, "4": 4, "8": 8}.get(argument.name[-1:], 0)
            text = chance.choice((b"", b"1", b"model", b"-7L"))
            code += len(text).to_bytes(size, "little") + text if size else text + b"\n"
        made.append(code)
    return b"".join(made) + b"."


# How a seed makes a file, by the kind of damage.
KINDS: dict[str, Callable[[int], bytes]] = {
    "zip": lambda seed: damaged(sound("zip"), seed),
    "pickle": lambda seed: with_pickle(lambda content: damaged(content, seed)),
    "legacy": lambda seed: damaged(sound("legacy"), seed),
    "legacy pickle": lambda seed: damaged(sound("legacy")[:900], seed) + sound("legacy")[900:],
    "safetensors": lambda seed: damaged(sound("safetensors"), seed),
    "program": lambda seed: in_zip(program(seed)),
}
