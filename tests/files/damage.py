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


def beside_weights(pickled: bytes) -> bytes:
    """A sound checkpoint that has what `pickled` makes besides."""
    inner = pickled.removeprefix(b"\x80\x02").removeprefix(b"\x80\x04").removesuffix(b".")
    return with_pickle(lambda whole: whole.removesuffix(b".") + b"X\x01\x00\x00\x00x" + inner + b"s.")


# What programs name: torch's and NumPy's own functions get arguments that they never have, and the rest runs code.
NAMES = (
    *(
        "collections OrderedDict",
        "collections Counter",
        "argparse Namespace",
        "a.b C",
        "builtins set",
        "copyreg _reconstructor",
    ),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch._tensor _rebuild_from_type_v2"),
    *(
        "numpy dtype",
        "numpy.core.multiarray scalar",
        "numpy.core.multiarray _reconstruct",
        "_codecs encode",
        "torch Size",
    ),
    *("torch FloatStorage", "pathlib PosixPath", "builtins getattr"),
)
CODE = ("os system", "builtins eval", "subprocess Popen")
WORDS = (
    "",
    "a",
    "model",
    "args",
    "blocks.0.attn.zeta",
    "_modules",
    "_parameters",
    "0.7",
    "f8",
    "storage",
    "cpu",
    "0",
    "a\nb",
)


def program(seed: int) -> bytes:
    """A pickle of random values, of which a few are broken."""
    chance = random.Random(seed)
    made = bytearray(b"\x80\x02Nq\x000" + value(chance, 5) + b".")
    if chance.random() < 0.2:
        made[chance.randrange(len(made))] = chance.choice(pickletools.opcodes).code.encode("latin-1")[0]
    return bytes(made)


def value(chance: random.Random, depth: int) -> bytes:
    """Operations that push one value, with at most `depth` others within one another."""

    def some(most: int) -> bytes:
        return b"".join(value(chance, depth - 1) for _ in range(chance.randrange(most)))

    def pairs() -> bytes:
        return b"".join(text(chance) + value(chance, depth - 1) for _ in range(chance.randrange(4)))

    def one() -> bytes:
        return value(chance, depth - 1)

    plain: tuple[Callable[[], bytes], ...] = (
        lambda: chance.choice((b"N", b"\x88", b"\x89", b")", b"]", b"}", b"h\x00", b"G" + bytes(8))),
        lambda: text(chance),
        lambda: b"J" + struct.pack("<i", chance.choice((0, 1, 3, -1, 2**31 - 1))),
        lambda: b"\x8a\x09" + chance.randbytes(9),
        lambda: name(chance),
    )
    nested: tuple[Callable[[], bytes], ...] = (
        lambda: b"(" + some(8) + b"t",
        lambda: b"(" + some(5) + b"l",
        lambda: b"](" + some(4) + b"e",
        lambda: b"}(" + pairs() + b"u",
        lambda: b"}" + one() + one() + b"s",
        lambda: name(chance) + b"(" + some(8) + b"t" + chance.choice((b"R", b"\x81")),
        lambda: name(chance) + b"(" + some(5) + b"tR" + one() + b"b",
        lambda: name(chance) + b")R(" + pairs() + b"u",
        lambda: b"(" + name(chance) + some(4) + b"o",
        lambda: one() + b"q\x00",
        lambda: b"(" + some(7) + b"tQ",
        lambda: one() + b"0" + one(),
    )
    return chance.choice(nested if depth > 0 and chance.random() < 0.8 else plain)()


def text(chance: random.Random) -> bytes:
    """Operations that push a word."""
    word = chance.choice(WORDS).encode()
    return b"X" + struct.pack("<I", len(word)) + word


def name(chance: random.Random) -> bytes:
    """Operations that push the name of a class or function."""
    return b"c" + chance.choice(NAMES if chance.random() < 0.99 else CODE).replace(" ", "\n").encode() + b"\n"


# How a seed makes a file, by the kind of damage.
KINDS: dict[str, Callable[[int], bytes]] = {
    "zip": lambda seed: damaged(sound("zip"), seed),
    "pickle": lambda seed: with_pickle(lambda content: damaged(content, seed)),
    "legacy": lambda seed: damaged(sound("legacy"), seed),
    "legacy pickle": lambda seed: damaged(sound("legacy")[:900], seed) + sound("legacy")[900:],
    "safetensors": lambda seed: damaged(sound("safetensors"), seed),
    "program": lambda seed: (in_zip if seed % 2 else beside_weights)(program(seed)),
}
