"""Whatever a file asks for, nothing is executed, nothing takes long or much memory, and an error is one line."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slimc.errors import CheckpointError
from slimc.files.checkpoint import read_checkpoint
from slimc.models.systems import recognises
from tests.checkpoints import save, state_dict
from tests.files import damage
from tests.files.damage import beside_weights, in_zip

ROOT = Path(__file__).parents[2]


class Calls:
    """A pickle that calls a function when it is loaded without care."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def named(module: str, name: str, arguments: bytes = b"X\x02\x00\x00\x00id\x85") -> bytes:
    """A pickle that calls a function by name."""
    return f"\x80\x02c{module}\n{name}\n".encode("latin-1") + arguments + b"R."


MARKER = "touch ran"
REFUSED = {
    "os.system": pickle.dumps(Calls(os.system, MARKER), 2),
    "builtins.eval": pickle.dumps(Calls(eval, "open('ran', 'w')"), 2),
    "builtins.exec": pickle.dumps(Calls(exec, "open('ran', 'w')"), 4),
    "__import__": pickle.dumps(Calls(__import__, "antigravity"), 2),
    "subprocess.Popen": pickle.dumps(Calls(subprocess.Popen, MARKER), 2),
    "open": pickle.dumps(Calls(open, "ran", "w"), 2),
    "torch.hub.load": named("torch.hub", "load"),
    "runpy.run_path": named("runpy", "run_path"),
    "an old name": named("__builtin__", "eval"),
    "an attribute": b"\x80\x04\x8c\x08builtins\x8c\x0deval.__call__\x93X\x01\x00\x00\x001\x85R.",
    "INST": b"(X\x02\x00\x00\x00idios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nX\x02\x00\x00\x00ido.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\nX\x02\x00\x00\x00id\x85\x81.",
}
LAUGHS = b"\x80\x02N\x85q\x00" + b"h\x00h\x00\x86q\x00" * 100
HARMLESS_OR_ERROR = {
    "getattr chain": b"\x80\x02cbuiltins\ngetattr\ncnumpy\narray\nX\x05\x00\x00\x00shape\x86R)R.",
    "a call of a record": b"\x80\x02ca\nb\n)R)R)R.",
    "a call of a dict": b"\x80\x02})R.",
    "a call of text": b"\x80\x02X\x02\x00\x00\x00id)R.",
    "BUILD of a class": b"\x80\x02ca\nb\n}X\x01\x00\x00\x00aNsb.",
    "BUILD of a list": b"\x80\x02]}b.",
    "a foreign persistent id": b"\x80\x02X\x04\x00\x00\x00evilQ.",
    "a persistent id that calls": b"\x80\x02(X\x06\x00\x00\x00modulecos\nsystem\nX\x01\x00\x00\x00aX\x01\x00\x00\x00btQ.",
    "laughs": LAUGHS + b".",
    "laughs as arguments": b"\x80\x02}X\x04\x00\x00\x00args" + LAUGHS[2:] + b"s.",
    "laughs as a key": b"\x80\x02}" + LAUGHS[2:] + b"Ns.",
    "laughs of lists": b"\x80\x02]q\x00" + b"(h\x00h\x00lq\x00" * 100 + b".",
    "laughs of dicts": b"\x80\x02}q\x00" + b"}X\x01\x00\x00\x00ah\x00sX\x01\x00\x00\x00bh\x00sq\x00" * 100 + b".",
    "a dict in itself": b"\x80\x02}q\x00X\x04\x00\x00\x00argsh\x00s.",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "deep tuples": b"\x80\x02)" + b"\x85" * 1_000_000 + b".",
    "deep tuples as a key": b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns.",
    "deep dicts": b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 300_000 + b"N" + b"s" * 300_000 + b".",
    "deep arguments": b"\x80\x02}X\x04\x00\x00\x00args"
    + b"}X\x01\x00\x00\x00a" * 99_999
    + b"N"
    + b"s" * 100_000
    + b".",
    "deep objects": b"\x80\x02" + b"ca\nb\n" * 300_000 + b")" + b"\x85R" * 300_000 + b".",
    "many marks": b"\x80\x02" + b"(" * 3_000_000 + b"t.",
    "many operations": b"\x80\x02" + b"N0" * 9_000_000 + b"N.",
    "many dicts": b"\x80\x02(" + b"}" * 3_900_000 + b"l.",
    "a far memo": b"\x80\x02Nr\xff\xff\xff\xff.",
    "a far memo in text": b"Np99999999999999999999\n.",
    "a huge text": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "huge bytes": b"\x80\x04B\xff\xff\xff\xff.",
    "a huge frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xffN.",
    "a huge integer": b"\x80\x02\x8b\x00\x00\x10\x00" + b"\xff" * 0x100000 + b".",
    "a long decimal": b"I" + b"9" * 60_000 + b"\n.",
    "an endless line": b"I" + b"9" * 3_000_000,
    "an extension": b"\x80\x02\x82\x01.",
    "keys that collide": b"\x80\x02}("
    + b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(300_000))
    + b"u.",
    "names with control characters": b"\x80\x02}X\x07\x00\x00\x00a\nb\x1b[2JNs.",
    "surrogates": b"\x80\x02}X\x03\x00\x00\x00\xed\xa0\x80Ns.",
}


def run(paths: list[Path]) -> dict[str, Any]:
    """What becomes of files in a process of its own."""
    command = [sys.executable, "-m", "tests.files.audited", "files", *map(str, paths)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def legacy(pickled: bytes) -> bytes:
    """`pickled` as the content of a file of the format before zip archives."""
    rest = pickle.dumps([], 2)
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    return head + pickled + rest


def test_nothing_is_executed_and_nothing_takes_long(tmp_path):
    paths: dict[str, str] = {}
    for wrap in (in_zip, legacy, beside_weights):
        for name, pickled in {**REFUSED, **HARMLESS_OR_ERROR}.items():
            path = tmp_path / f"{wrap.__name__}-{len(paths)}.pth"
            path.write_bytes(wrap(pickled))
            paths[str(path)] = name
    for path, outcome in run([Path(path) for path in paths]).items():
        what = f"{Path(path).stem} {paths[path]}: {outcome}"
        assert outcome["found"] in ("read", "error"), what
        assert outcome["events"] == [], what
        assert outcome["seconds"] < 5, what
        assert outcome["megabytes"] < 1000, what
        if paths[path] in REFUSED:
            assert "refused: its pickle calls " in outcome["message"], what
    assert not list(tmp_path.rglob("ran"))
    assert not (ROOT / "ran").exists()


@pytest.mark.parametrize("name", REFUSED)
def test_a_pickle_that_runs_code_is_refused_by_name(tmp_path, name):
    path = tmp_path / "evil.pth"
    path.write_bytes(in_zip(REFUSED[name]))
    with pytest.raises(CheckpointError, match=r"evil.pth: refused: its pickle calls .* nothing was run") as caught:
        read_checkpoint(path, recognises)
    assert "\n" not in str(caught.value)


def test_classes_that_hold_data_are_not_refused(tmp_path):
    content = {
        "model": state_dict(),
        "note": [
            Path().stat(),
            subprocess.CompletedProcess("a", 1),
            subprocess.TimeoutExpired("a", 1),
            io.BytesIO(b"a"),
        ],
    }
    assert read_checkpoint(save(tmp_path / "c.pth", content), recognises).state


def tensor_of(storage: str, count: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A pickle with one weight that lies where it says."""

    class Pickler(pickle._Pickler):
        def persistent_id(self, value: object) -> object:
            return value.identity if isinstance(value, Storage) else None

    class Storage:
        identity = ("storage", torch.FloatStorage, storage, "cpu", count)

    stream = io.BytesIO()
    rebuild = torch._utils._rebuild_tensor_v2
    weight = Calls(rebuild, Storage(), offset, size, stride, False, {})
    Pickler(stream, 2).dump({"blocks.0.attn.zeta": weight})
    return stream.getvalue()


# The first storage of the small checkpoint holds four numbers.
BAD_TENSORS = {
    "no such storage": (("none", 4, 0, (4,), (1,)), "there are none"),
    "a storage of another size": (("0", 5, 0, (4,), (1,)), "has 5 numbers, but there are 16 bytes"),
    "more than there is": (("0", 4, 0, (5,), (1,)), "a tensor of 5 numbers in a storage of 16 bytes"),
    "beyond the end": (("0", 4, 2, (3,), (1,)), "a tensor of 3 numbers in a storage of 16 bytes"),
    "strides beyond": (("0", 4, 0, (2,), (9,)), "a tensor of 2 numbers"),
    "the same number many times": (("0", 4, 0, (1 << 40,), (0,)), "claim many times the file's size"),
    "the same number some times": (("0", 4, 0, (99,), (0,)), "a tensor of 99 numbers"),
    "overflow": (("0", 4, 0, (1 << 40, 1 << 40), (1 << 40, 1)), "claim many times the file's size"),
    "negative": (("0", 4, -1, (4,), (1,)), "is made by torch._utils._rebuild_tensor_v2"),
    "axes that do not match": (("0", 4, 0, (4, 1), (1,)), "is made by torch._utils._rebuild_tensor_v2"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_tensors_outside_of_their_storage_are_refused(tmp_path, case):
    where, reason = BAD_TENSORS[case]
    path = tmp_path / "c.pth"
    path.write_bytes(in_zip(tensor_of(*where)))
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(path, recognises)


def test_the_same_weight_many_times_is_refused(tmp_path):
    whole = torch.zeros(300_000)
    state = {f"blocks.{i}.attn.zeta": whole for i in range(3)} | {f"a.{i}_orig": whole for i in range(90)}
    with pytest.raises(CheckpointError, match="claim many times the file's size"):
        read_checkpoint(save(tmp_path / "c.pth", state), recognises)


def test_archives_whose_members_overlap_are_refused(tmp_path):
    path = tmp_path / "c.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", bytes(100_000))
        first = archive.infolist()[0]
        for number in range(1000):
            info = zipfile.ZipInfo(f"a/data/{number}")
            info.header_offset, info.file_size, info.compress_size, info.CRC = (
                0,
                first.file_size,
                first.file_size,
                first.CRC,
            )
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
    with pytest.raises(CheckpointError, match="overlap"):
        read_checkpoint(path, recognises)


def test_arrays_that_lie_about_themselves_are_left_out(tmp_path):
    content = {"model": state_dict(), "args": {"a": np.arange(3), "b": 1}}
    path = save(tmp_path / "c.pth", content)
    assert read_checkpoint(path, recognises).args == {"a": [0, 1, 2], "b": 1}
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member.replace(b"K\x01K\x03\x85", b"K\x01K\x07\x85"))
    assert read_checkpoint(path, recognises).args == {"b": 1}


def fuzzed(kind: str, first: int, count: int, directory: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.files.audited", "fuzz", kind, str(first), str(count), str(directory)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", damage.KINDS)
def test_damaged_files_do_no_harm(tmp_path, kind):
    found = fuzzed(kind, 0, 100, tmp_path)
    assert found["wrong"] == []
    assert found["found"]["error"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("kind", damage.KINDS)
def test_twenty_thousand_damaged_files_do_no_harm(tmp_path, kind, part):
    found = fuzzed(kind, 1000 + 1667 * part, 1667, tmp_path)
    assert found["wrong"] == []
    assert sum(found["found"].values()) == 1667
