"""What a file is, told by its content: a name may say anything."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from slimc.files.checkpoint.recorded import ForeignError

Container = Literal["zip", "legacy", "safetensors"]

_UNPACK = "unpack it and give the checkpoint in it"
_ENGINE = "slimc verify and slimc bench take engines"
_ONNX = "slimc verify, bench, inspect and build-engine take ONNX models"
_FETCH = "the download went wrong: fetch the file itself"
# First bytes, what a file that begins with them is, and what to do about it.
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch the file: git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them", ""),
    (b"GGUF", "a GGUF file", ""),
    (b"GGML", "a GGML file", ""),
    (b"\x93NUMPY", "a NumPy array (.npy)", ""),
    (b"PK\x05\x06", "an empty zip archive", ""),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x89PNG", "a PNG image", ""),
    (b"\xff\xd8\xff", "a JPEG image", ""),
    (b"%PDF", "a PDF document", ""),
    (b"\x7fELF", "a program or library", ""),
    (b"ptrt", "a TensorRT engine", _ENGINE),
    (b"ftrt", "a TensorRT engine", _ENGINE),
    (b"\x08\x01\x12", "a TensorFlow SavedModel", ""),
)
_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit


def identify(path: Path) -> Container:
    """How a checkpoint is packed.

    Raises:
        ForeignError: it is none.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(1024)
        file.seek(max(0, size - 8))
        tail = file.read(8)
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header <= _LARGEST_HEADER:
        return "safetensors"
    # A pickle of protocol 2 or later, or of protocol 0 or 1 by its opening number.
    if (head[:1] == b"\x80" and head[1:2] <= b"\x05") or head.startswith(b"L119547037146038801333356L"):
        return "legacy"
    raise _foreign(path, head, tail)


def _foreign(path: Path, head: bytes, tail: bytes) -> ForeignError:
    for signature, what, advice in _SIGNATURES:
        if head.startswith(signature):
            return ForeignError(what, advice)
    if head[257:262] == b"ustar":
        return ForeignError("a tar archive", _UNPACK)
    if head[4:8] == b"TFL3":
        return ForeignError("a TensorFlow Lite model")
    if tail == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb" or ".data-0000" in path.name:
        return ForeignError("part of a TensorFlow checkpoint")
    if _is_onnx(head):
        return ForeignError("an ONNX model", _ONNX)
    return _text(head) or ForeignError("something unknown, neither a zip archive nor a pickle nor safetensors")


def _is_onnx(head: bytes) -> bool:
    """Whether it is a protobuf of ONNX's ModelProto: a small ir_version, then one of its other fields."""
    # producer_name, producer_version, domain, model_version, doc_string, graph, opset_import
    fields = (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)
    return len(head) > 3 and head[0] == 0x08 and 2 < head[1] < 32 and head[2] in fields


def _text(head: bytes) -> ForeignError | None:
    """What a text file is; none where it is no text."""
    text = head.decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")
    # The last character may be cut in two.
    lost = len(head) - len(text.encode())
    if not text or b"\x00" in head or lost > 64 or not " ".join(text.split())[:60].isprintable():
        return None
    start = text[:200].lower()
    if start.startswith("<"):
        page = "html" in start or "<head" in start
        return ForeignError("an HTML page" if page else "an XML text, perhaps a server's error message", _FETCH)
    if start.startswith(("{", "[")):
        return ForeignError("a JSON text")
    return ForeignError(f"a text file, which begins {' '.join(text.split())[:40]!a}")
