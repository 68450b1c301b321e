"""What torch.save writes: a zip archive, or before torch 1.6 a row of pickles and storages.

The file is mapped into memory, and tensors share that memory: what nobody asks for, such as the optimizer's state, is not
read but for its checksum.
"""

from __future__ import annotations

import mmap
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimc.files.checkpoint.recorded import ForeignError, Recorded, UnreadableError
from slimc.files.checkpoint.stored import Storage, rebuilt, storage_of
from slimc.files.checkpoint.unpickle import Buffer, unpickle

if TYPE_CHECKING:
    import torch

# The number that opens a file of the format before zip archives.
MAGIC = 0x1950A86A20F9469CFC6C
_ALIGNMENT = 16  # bytes; PyTorch aligns to 64, but a file may be anything


def read_zip(path: Path) -> object:
    """The object in a zip archive of torch.save, its tensors as `Stored`.

    Raises:
        UnreadableError: the archive is damaged, or holds something else.
    """
    members = _members(path)
    root = _root(members)
    storages = {
        name.removeprefix(f"{root}data/"): place for name, place in members.items() if name.startswith(f"{root}data/")
    }
    with _mapped(path) as buffer:
        order = b"little"
        if f"{root}byteorder" in members:
            start, size = members[f"{root}byteorder"]
            order = buffer[start : start + size]
        source = _Source(path, storages, swapped=order not in (b"little", sys.byteorder.encode()))
        start, size = members[f"{root}data.pkl"]
        return _next(buffer[start : start + size], 0, source)[0]


def read_legacy(path: Path) -> object:
    """The object in a file of the format before zip archives, its tensors as `Stored`.

    Raises:
        UnreadableError: the file is damaged, or a pickle of something else.
    """
    with _mapped(path) as buffer:
        magic, position = unpickle(buffer)
        if magic != MAGIC:
            raise UnreadableError(
                "a pickle that torch.save did not write; load it where it comes from and torch.save it"
            )
        version, position = unpickle(buffer, position)
        system, position = unpickle(buffer, position)
        if version != 1001 or not isinstance(system, dict):
            raise UnreadableError("of an unknown version of the format before zip archives")
        source = _Source(path, {}, swapped=system.get("little_endian") is False)
        content, position = _next(buffer, position, source)
        keys, position = unpickle(buffer, position)
        if not isinstance(keys, list):
            raise UnreadableError("its list of storages is damaged")
        source.places.update(_legacy_places(buffer, position, keys, source.widths))
        return content


@dataclass(eq=False)
class _Source:
    """The storages of one file: where each begins and how many bytes it has, by its key."""

    path: Path
    places: dict[str, tuple[int, int]]
    swapped: bool
    widths: dict[str, int] = field(default_factory=dict)
    _whole: Any = None
    _read: dict[str, torch.UntypedStorage] = field(default_factory=dict)

    def read(self, storage: Storage) -> torch.UntypedStorage:
        """See `slimc.files.checkpoint.stored.Source`."""
        import torch

        if storage.key in self._read:
            return self._read[storage.key]
        start, size = self.places.get(storage.key, (0, -1))
        if size != storage.count * self.width(storage):
            found = "none" if size < 0 else f"{size:,} bytes"
            raise UnreadableError(
                f"damaged: storage {ascii(storage.key)[:40]} has {storage.count:,} numbers, but there are {found}"
            )
        if self._whole is None:
            whole: Any = torch.UntypedStorage.from_file(str(self.path), False, self.path.stat().st_size)
            self._whole = whole
        memory: Any = self._whole[start : start + size] if size else torch.empty(0).untyped_storage()
        if start % _ALIGNMENT or self.swapped:
            memory = memory.clone()
        if self.swapped:
            memory.byteswap(getattr(torch, storage.dtype))
        self._read[storage.key] = memory
        return self._read[storage.key]

    @staticmethod
    def width(storage: Storage) -> int:
        """Bytes of an element."""
        import torch

        dtype: torch.dtype = getattr(torch, storage.dtype)
        return dtype.itemsize

    def persistent(self, identity: object) -> object:
        """What stands for a persistent id."""
        storage = storage_of(identity)
        if storage is not None:
            self.widths[storage.key] = self.width(storage)
            return storage
        # A module whose source was saved along: ("module", class, file, source).
        is_class = isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module"
        return identity[1] if is_class and isinstance(identity, tuple) else Recorded("persistent", (identity,))


def _next(buffer: Buffer, position: int, source: _Source) -> tuple[object, int]:
    """The next object of a buffer, with its tensors."""
    return unpickle(
        buffer, position, persistent=source.persistent, make=lambda name, arguments: rebuilt(name, arguments, source)
    )


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        yield buffer


def _members(path: Path) -> Mapping[str, tuple[int, int]]:
    """Where every member of an archive begins, and its bytes, all of which match their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            compressed = any(info.compress_type != zipfile.ZIP_STORED for info in infos)
            _root([info.filename for info in infos], compressed=compressed)
            if compressed or any(info.compress_size != info.file_size for info in infos):
                raise ForeignError("a compressed zip archive, which torch.save does not write", "unpack it")
            # Members that overlap would take any time to check.
            if sum(info.file_size for info in infos) > path.stat().st_size or len({i.filename for i in infos}) < len(
                infos
            ):
                raise UnreadableError("a damaged zip archive, whose members overlap")
            damaged = archive.testzip()
        if damaged is not None:
            raise UnreadableError(f"damaged: {damaged!r} does not match its checksum")
        with path.open("rb") as file:
            return {info.filename: (_start(file, info), info.file_size) for info in infos}
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ["unexpected end"])[0][:200]
        raise UnreadableError(f"a truncated or damaged zip archive: {reason}") from None


def _start(file: Any, info: zipfile.ZipInfo) -> int:  # noqa: ANN401 - a binary file
    """Where the bytes of a member begin: its name and what belongs to it stand before them once more."""
    file.seek(info.header_offset + 26)
    lengths = file.read(4)
    return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def _root(members: Collection[str], *, compressed: bool = False) -> str:
    """The folder that holds everything, which is called as the file was when it was saved.

    Raises:
        ForeignError: it is an archive of something else than torch.save.
    """
    pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if not pickles:
        raise _other_archive(members, compressed)
    root = min(pickles, key=len).removesuffix("data.pkl")
    if f"{root}constants.pkl" in members:
        raise ForeignError(
            "a TorchScript archive, whose code slimc does not run",
            "save its weights: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')",
        )
    return root


def _other_archive(members: Collection[str], compressed: bool) -> ForeignError:
    if members and all(name.endswith(".npy") for name in members):
        return ForeignError("a NumPy archive (.npz)", "load it where it comes from, and torch.save it")
    if "model.weights.h5" in members:
        return ForeignError("a Keras archive")
    if any(name.endswith("model.json") or "/models/" in name for name in members):
        return ForeignError(
            "a torch.export archive", "save the network's state dict: torch.save(model.state_dict(), FILE)"
        )
    found = ", ".join(ascii(name)[1:-1][:40] for name in list(members)[:3]) or "nothing"
    kind = "a compressed zip archive" if compressed else "a zip archive"
    return ForeignError(f"{kind} of something else (it holds {found})", "unpack it if a checkpoint is in it")


def _legacy_places(
    buffer: mmap.mmap, position: int, keys: list[object], widths: Mapping[str, int]
) -> dict[str, tuple[int, int]]:
    """Where storages begin that stand one after another, each after its number of elements."""
    places = {}
    for key in keys:
        if not isinstance(key, str) or key not in widths:
            raise UnreadableError("its list of storages is damaged")
        count = int.from_bytes(buffer[position : position + 8], "little")
        size = count * widths[key]
        places[key] = (position + 8, size)
        position += 8 + size
        if position > len(buffer):
            raise UnreadableError("cut off: storages are missing")
    return places
