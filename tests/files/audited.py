"""Reads checkpoints in a process of its own under Python's audit hooks, and tells what happened, as JSON.

python -m tests.files.audited files PATH ...
python -m tests.files.audited fuzz KIND FIRST COUNT DIRECTORY
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from slimc.compiler.load import load_network
from slimc.errors import UserError
from tests.files.damage import KINDS, sound

# What a file must never bring about. Reading opens files, and imports happen before.
FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "os.",
    "subprocess.",
    "socket.",
    "shutil.",
    "pickle.",
    "code.",
    "ctypes.",
    "pty.",
)
ALLOWED = ("os.listdir", "os.scandir", "os.stat")
LONGEST = 30  # seconds, after which the process says where it hangs and dies


class Watch:
    """Notes events while it is on; an audit hook cannot be taken away."""

    def __init__(self) -> None:
        self.on = False
        self.events: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event.startswith(FORBIDDEN) and event not in ALLOWED:
            self.events.append(f"{event} {arguments[0]!r}"[:200])
        elif self.on and event == "open":
            writing = isinstance(arguments[1], str) and not set(arguments[1]).isdisjoint("wax+")
            if writing or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                self.events.append("open for writing")


def outcome(path: Path, watch: Watch) -> dict[str, Any]:
    """What becomes of one file: read, an error of one line, or something that must not be."""
    start, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch.events.clear()
    watch.on = True
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    try:
        load_network(path)
        found = "read"
    except UserError as error:
        found = (
            "error" if "\n" not in str(error) and str(error).startswith((f"{path}: ", "--")) else f"unclear: {error}"
        )
        message = str(error)
    except Exception as error:  # whatever it is, it is a defect
        found = f"crash: {type(error).__name__}: {error}"
    finally:
        watch.on = False
        faulthandler.cancel_dump_traceback_later()
    return {
        "found": found,
        "message": message if found == "error" else "",
        "events": sorted(set(watch.events)),
        "seconds": time.process_time() - start,
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024,
    }


def fuzz(kind: str, first: int, count: int, directory: Path, watch: Watch) -> dict[str, Any]:
    """The outcomes of `count` damaged files, how many of each, and those that must not be."""
    path, found, wrong, slowest = directory / "damaged.pth", Counter[str](), [], 0.0
    for seed in range(first, first + count):
        path.write_bytes(KINDS[kind](seed))
        each = outcome(path, watch)
        found[each["found"]] += 1
        slowest = max(slowest, each["seconds"])
        if each["found"] not in ("read", "error") or each["events"] or each["seconds"] > 5 or each["megabytes"] > 500:
            wrong.append({"seed": seed, **each})
    return {"found": found, "wrong": wrong[:10], "slowest": slowest}


def main() -> None:
    """Read what the arguments name."""
    warnings.simplefilter("error")
    mode, *arguments = sys.argv[1:]
    directory = Path(arguments[-1]) if mode == "fuzz" else Path(arguments[0]).parent
    watch = Watch()
    # What is imported when it is first needed is imported now, zipfile's encoding of names included.
    "".encode("cp437")
    for container in ("zip", "legacy", "safetensors"):
        whole = directory / f"whole-{container}.pth"
        whole.write_bytes(sound(container))
        load_network(whole)
        whole.write_bytes(sound(container)[:500])
        outcome(whole, watch)
        whole.unlink()
    # A file that lost its zetas is a plain network, of the name that its arguments say.
    import timm

    timm.create_model("deit_small_patch16_224", depth=1)
    if mode == "fuzz":
        print(json.dumps(fuzz(arguments[0], int(arguments[1]), int(arguments[2]), directory, watch)))
    else:
        print(json.dumps({path: outcome(Path(path), watch) for path in arguments}))


if __name__ == "__main__":
    main()
