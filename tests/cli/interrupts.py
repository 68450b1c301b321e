"""Interrupts ``slimc export`` at many moments of its work; run by test_cli in a process of its own.

    python -m tests.cli.interrupts CKPT DIRECTORY ROUNDS

Every round is a fork of this process, in which everything is imported already, so that it is the work that is interrupted.
Prints what each round left behind: "old", "new", or whatever else it was.
"""

import os
import signal
import sys
import time
from pathlib import Path

from slimc.cli import main as cli
from tests.command_line import snapshot

FILES = ("m.onnx", "m.reference.npz")


def main(checkpoint: str, directory: Path, rounds: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    sys.argv = ["slimc", "export", checkpoint, "-o", str(directory / "m.onnx"), "--quiet"]
    cli.run()  # imports everything
    start = time.perf_counter()
    child = start_round()
    os.waitpid(child, 0)
    duration = time.perf_counter() - start
    new = (directory / "m.onnx").read_bytes()
    for i in range(rounds):
        for name in FILES:
            (directory / name).write_bytes(b"old")
        child = start_round()
        time.sleep(duration * (i + 0.5) / rounds)
        os.kill(child, signal.SIGINT)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), describe(snapshot(directory), new))


def start_round() -> int:
    child = os.fork()
    if child == 0:
        try:
            code = cli.run()
        except KeyboardInterrupt:  # before or after the command's own work
            code = 130
        os._exit(code)
    return child


def describe(found: dict[str, bytes], new: bytes) -> str:
    if found == dict.fromkeys(FILES, b"old"):
        return "old"
    if found.keys() == set(FILES) and found["m.onnx"] == new and found["m.reference.npz"] != b"old":
        return "new"
    return f"broken: {sorted(found)}"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
