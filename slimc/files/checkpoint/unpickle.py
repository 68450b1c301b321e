"""A machine for pickles that calls nothing: it has no way to import, look up or run what a pickle names.

Python's own unpickler hands out whatever a class of the file asks for; this one keeps plain data, and a record of every
object (`Recorded`). Every operation takes time and memory in proportion to its bytes, and there may be only so many.
"""

from __future__ import annotations

import gc
import pickletools
import re
import struct
from collections.abc import Callable
from typing import Any, Protocol

from slimc.files.checkpoint.recorded import Global, Recorded, RefusedError, UnreadableError

# Three seconds of computing at most. A pickled list of ImageNet's files and labels has 6.4 million.
MOST_OPERATIONS = 7_000_000
# Modules whose functions run code or reach out of the process, and what in them is but data. A file that calls such a
# function does harm to whoever loads it without care, which its user wants to know. Nothing is called either way.
_ACTIVE = frozenset({
    *("os", "posix", "nt", "subprocess", "pty", "runpy", "socket", "shutil", "webbrowser", "ctypes", "importlib", "sys"),
    *("code", "commands", "popen2", "marshal", "pickle", "timeit", "cProfile", "profile", "pdb", "bdb", "pip", "torch.hub"),
    *("urllib.request", "http.client", "requests", "io.open", "_io.open", "_io.FileIO", "codecs.open"),
    *(f"builtins.{name}" for name in ("eval", "exec", "compile", "execfile", "__import__", "open", "input", "breakpoint")),
})  # fmt: skip
_DATA = (
    "_result",
    "_Environ",
    "_info",
    "_size",
    "_flags",
    "CompletedProcess",
    "PathLike",
    "Error",
    "Exception",
    "Warning",
    "Expired",
)
_LONGEST_INTEGER = 1024  # bytes
_LONGEST_LINE = 1 << 16
_BYTE, _SHORT, _WORD, _LONG = struct.Struct("<B"), struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
_INTEGER, _DOUBLE = struct.Struct("<i"), struct.Struct(">d")


class Buffer(Protocol):
    """Bytes, or a file mapped into memory."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: slice, /) -> bytes: ...
    def find(self, sub: bytes, start: int, end: int, /) -> int: ...  # noqa: D102


Make = Callable[[str, tuple[Any, ...]], object]


def unpickle(
    buffer: Buffer, position: int = 0, *, persistent: Callable[[object], object] | None = None, make: Make | None = None
) -> tuple[object, int]:
    """The object in the pickle that begins at `position`, and where that pickle ends.

    Args:
        buffer: what holds the pickle.
        position: where it begins.
        persistent: what stands for a persistent id, such as a storage of torch.
        make: what stands for a call of a function, by its name and arguments; it returns none to leave a record of the call.

    Raises:
        UnreadableError: there is no whole pickle, it contradicts itself, or it calls what runs code.
    """
    machine = _Machine(
        buffer,
        position,
        persistent or (lambda identity: Recorded("persistent", (identity,))),
        make or (lambda _name, _arguments: None),
    )
    collecting = gc.isenabled()
    gc.disable()  # Nothing is released meanwhile, and going through millions of objects again and again takes a minute.
    try:
        return machine.run(), machine.position
    except (LookupError, ValueError, TypeError, struct.error, OverflowError) as error:
        raise UnreadableError(f"its pickle is damaged at byte {machine.position}") from error
    finally:
        if collecting:
            gc.enable()


class _Machine:
    """A stack, marks in it, and a memo; one method for what an operation does, or for what several are made of."""

    def __init__(self, buffer: Buffer, position: int, persistent: Callable[[object], object], make: Make) -> None:
        self._buffer = buffer
        self.position = position
        self._persistent = persistent
        self._make = make
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> object:
        take, operations = self.take, _OPERATIONS
        for _ in range(MOST_OPERATIONS):
            code = take(1)
            if code == b".":
                return self._stack.pop()
            operations[code](self)
        raise UnreadableError(f"its pickle has more than {MOST_OPERATIONS:,} operations; save the state dict alone")

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        start = self.position
        self.position = end = start + count
        taken = self._buffer[start:end]
        if len(taken) != count:
            raise UnreadableError("its pickle is cut off")
        return taken

    def line(self) -> str:
        """The text up to the next line feed."""
        end = self._buffer.find(b"\n", self.position, self.position + _LONGEST_LINE)
        if end < 0:
            raise UnreadableError("its pickle is damaged: an endless line")
        text = self.take(end - self.position)
        self.position += 1
        return text.decode("utf-8", "replace")

    def push(self, value: object) -> None:
        self._stack.append(value)

    def sized(self, layout: struct.Struct) -> bytes:
        """The bytes whose number stands before them."""
        return self.take(self.number(layout))

    def number(self, layout: struct.Struct) -> Any:  # noqa: ANN401 - as struct gives it
        return layout.unpack(self.take(layout.size))[0]

    def since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def pop(self) -> Any:  # noqa: ANN401
        return self._stack.pop()

    def discard(self) -> None:
        """Pop a value, or a mark where nothing is above it."""
        if self._stack:
            self._stack.pop()
        else:
            self._stack = self._marks.pop()

    def top(self) -> Any:  # noqa: ANN401
        return self._stack[-1]

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def named(self, module: str, name: str) -> None:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        self.push(Global(f"{module}.{name}"))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError
        self.named(module, name)

    def call(self, function: object, arguments: object) -> None:
        """Record a call; what is called may be a name, or an object of the file."""
        if not isinstance(arguments, tuple) or not isinstance(function, (Global, Recorded)):
            raise TypeError
        if isinstance(function, Global):
            _refuse_active(function.name)
            if function.name == "copyreg._reconstructor" and arguments and isinstance(arguments[0], Global):
                function, arguments = arguments[0], arguments[2:]
        made = self._make(function.name, arguments)
        self.push(Recorded(function.name, arguments) if made is None else made)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        self.call(function, arguments)

    def new_with_keywords(self) -> None:
        _keywords, arguments, function = self.pop(), self.pop(), self.pop()
        self.call(function, arguments)

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Recorded):
            target.state = state

    def append(self, values: list[Any]) -> None:
        target = self.top()
        target = target.growing_items() if isinstance(target, Recorded) else target
        if not isinstance(target, list):
            raise TypeError
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        target = target.growing_entries() if isinstance(target, Recorded) else target
        if not isinstance(target, dict) or len(values) % 2:
            raise TypeError
        target.update(zip(map(_key, values[::2]), values[1::2], strict=True))

    def persistent(self, identity: object) -> None:
        self.push(self._persistent(identity))


def _refuse_active(name: str) -> None:
    """Refuse a call that a file has no reason for, unless to harm."""
    parts = name.split(".", 3)
    if not _ACTIVE.isdisjoint((parts[0], ".".join(parts[:2]))) and not name.endswith(_DATA):
        shown = ascii(name)[1:-1][:80]
        raise RefusedError(
            f"refused: its pickle calls {shown}, which no checkpoint needs and which may do harm; nothing was run: "
            "do not load it elsewhere, and get the file anew from a source that you trust"
        )


def _key(value: object) -> object:
    """A key whose hash takes no time and collides with few others; other objects stand for themselves, by identity."""
    if isinstance(value, int) and not -(1 << 60) < value < 1 << 60:
        return Recorded("int", (value,))
    plain = value is None or isinstance(value, (str, bytes, bool, int, float, Global, Recorded))
    return value if plain else Recorded("key", (value,))


def _integer(data: bytes) -> object:
    if len(data) > _LONGEST_INTEGER:
        return Recorded("int", (data,))
    return int.from_bytes(data, "little", signed=True)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _old_text(data: bytes) -> str:
    """A str of Python 2, which is bytes or text."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _decimal(text: str) -> object:
    if text in ("00", "01"):
        return text == "01"
    digits = text.removesuffix("L")
    return Recorded("int", (digits,)) if len(digits) > _LONGEST_INTEGER else int(digits)


def _quoted(text: str) -> str:
    """What stands between quotes, its escapes resolved."""
    plain = {"n": "\n", "t": "\t", "r": "\r"}
    escape = re.compile(r"\\(x[0-9a-fA-F]{2}|.)")
    return escape.sub(lambda e: chr(int(e[1][1:], 16)) if len(e[1]) == 3 else plain.get(e[1], e[1]), text[1:-1])


def _instance(machine: _Machine) -> None:
    machine.named(machine.line(), machine.line())
    function = machine.pop()
    machine.call(function, tuple(machine.since_mark()))


def _object(machine: _Machine) -> None:
    function, *arguments = machine.since_mark()
    machine.call(function, tuple(arguments))


def _frozen(machine: _Machine) -> None:
    machine.push(Recorded("builtins.frozenset", (), items=machine.since_mark()))


def _pop_pairs(machine: _Machine) -> list[Any]:
    value, key = machine.pop(), machine.pop()
    return [key, value]


def _in_dict(machine: _Machine) -> None:
    values = machine.since_mark()
    machine.push({})
    machine.set_items(values)


_Operations = dict[str, Callable[[_Machine], object]]


def _operations() -> dict[bytes, Callable[[_Machine], object]]:
    """What every operation does, by its byte."""
    by_name = {**_stack(), **_values(), **_containers(), **_objects()}
    return {code.code.encode("latin-1"): by_name[code.name] for code in pickletools.opcodes if code.name in by_name}


def _stack() -> _Operations:
    """How the stack is handled; the names are those of Python's pickletools, as in what follows."""
    push, take = _Machine.push, _Machine.take
    return {
        "MARK": _Machine.mark,
        "POP": _Machine.discard,
        "POP_MARK": _Machine.since_mark,
        "DUP": lambda m: push(m, m.top()),
        "PROTO": lambda m: take(m, 1),
        "FRAME": lambda m: take(m, 8),
        "PUT": lambda m: m.put(int(m.line())),
        "BINPUT": lambda m: m.put(m.number(_BYTE)),
        "LONG_BINPUT": lambda m: m.put(m.number(_WORD)),
        "MEMOIZE": _Machine.memoize,
        "GET": lambda m: m.get(int(m.line())),
        "BINGET": lambda m: m.get(m.number(_BYTE)),
        "LONG_BINGET": lambda m: m.get(m.number(_WORD)),
    }


def _values() -> _Operations:
    """Plain values."""
    push = _Machine.push
    return {
        "NONE": lambda m: push(m, None),
        "NEWTRUE": lambda m: push(m, True),
        "NEWFALSE": lambda m: push(m, False),
        "INT": lambda m: push(m, _decimal(m.line())),
        "LONG": lambda m: push(m, _decimal(m.line())),
        "BININT": lambda m: push(m, m.number(_INTEGER)),
        "BININT1": lambda m: push(m, m.number(_BYTE)),
        "BININT2": lambda m: push(m, m.number(_SHORT)),
        "LONG1": lambda m: push(m, _integer(m.sized(_BYTE))),
        "LONG4": lambda m: push(m, _integer(m.sized(_WORD))),
        "FLOAT": lambda m: push(m, float(m.line())),
        "BINFLOAT": lambda m: push(m, m.number(_DOUBLE)),
        "STRING": lambda m: push(m, _quoted(m.line())),
        "BINSTRING": lambda m: push(m, _old_text(m.sized(_WORD))),
        "SHORT_BINSTRING": lambda m: push(m, _old_text(m.sized(_BYTE))),
        "UNICODE": lambda m: push(m, m.line()),
        "BINUNICODE": lambda m: push(m, _text(m.sized(_WORD))),
        "SHORT_BINUNICODE": lambda m: push(m, _text(m.sized(_BYTE))),
        "BINUNICODE8": lambda m: push(m, _text(m.sized(_LONG))),
        "BINBYTES": lambda m: push(m, m.sized(_WORD)),
        "SHORT_BINBYTES": lambda m: push(m, m.sized(_BYTE)),
        "BINBYTES8": lambda m: push(m, m.sized(_LONG)),
        "BYTEARRAY8": lambda m: push(m, m.sized(_LONG)),
    }


def _containers() -> _Operations:
    """Tuples, lists, dicts and sets."""
    push = _Machine.push
    return {
        "EMPTY_TUPLE": lambda m: push(m, ()),
        "TUPLE": lambda m: push(m, tuple(m.since_mark())),
        "TUPLE1": lambda m: m.tuple_of(1),
        "TUPLE2": lambda m: m.tuple_of(2),
        "TUPLE3": lambda m: m.tuple_of(3),
        "EMPTY_LIST": lambda m: push(m, []),
        "LIST": lambda m: push(m, m.since_mark()),
        "APPEND": lambda m: m.append([m.pop()]),
        "APPENDS": lambda m: m.append(m.since_mark()),
        "EMPTY_DICT": lambda m: push(m, {}),
        "DICT": _in_dict,
        "SETITEM": lambda m: m.set_items(_pop_pairs(m)),
        "SETITEMS": lambda m: m.set_items(m.since_mark()),
        "EMPTY_SET": lambda m: push(m, Recorded("builtins.set")),
        "ADDITEMS": lambda m: m.append(m.since_mark()),
        "FROZENSET": _frozen,
    }


def _objects() -> _Operations:
    """Objects, which are recorded."""
    return {
        "GLOBAL": lambda m: m.named(m.line(), m.line()),
        "STACK_GLOBAL": _Machine.stack_global,
        "REDUCE": _Machine.reduce,
        "NEWOBJ": _Machine.reduce,
        "NEWOBJ_EX": _Machine.new_with_keywords,
        "INST": _instance,
        "OBJ": _object,
        "BUILD": _Machine.build,
        "PERSID": lambda m: m.persistent(m.line()),
        "BINPERSID": lambda m: m.persistent(m.pop()),
    }


_OPERATIONS = _operations()
