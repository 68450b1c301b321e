"""The command line on terminals of several widths, and where there is none: help, tables, progress, colours, signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.artefacts import VECTORS
from tests.command_line import slimc, snapshot
from tests.terminal import COLOUR, COMMAND, ROOT, environment, on_terminal

COMMANDS = ("export", "build-engine", "inspect", "verify", "eval", "bench", "tune", "doctor", "demo")
CHECKPOINT = VECTORS["channel"]


def off_terminal(*arguments: str | Path, **how: Any) -> subprocess.CompletedProcess[str]:
    """``slimc ARGUMENTS...`` with pipes."""
    how.setdefault("env", environment())
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **how)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and images that are as large as its input."""
    folder = tmp_path_factory.mktemp("folder")
    assert slimc("export", CHECKPOINT, "-o", folder / "m.onnx", "-q").code == 0
    (folder / "images").mkdir()
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (56, 56, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i:02}.png")
    return folder


class TestHelp:
    @pytest.mark.parametrize("columns", [60, 80])
    @pytest.mark.parametrize("arguments", [(), ("--help",)], ids=["bare", "help"])
    def test_all_commands_are_listed_in_their_groups(self, arguments, columns):
        screen = on_terminal(*arguments, columns=columns)
        assert screen.code == 0
        assert max(map(len, screen.lines)) <= columns
        assert "…" not in screen.text
        groups = ["Compile:", "Check and measure:", "This machine:", "Options:"]
        starts = [screen.lines.index(group) for group in groups]
        assert starts == sorted(starts)
        listed = [re.match(r"  ([\w-]+)  ", line) for line in screen.lines[starts[0] : starts[-1]]]
        assert [found[1] for found in listed if found] == list(COMMANDS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_of_a_command_is_whole_on_a_narrow_terminal(self, command):
        outcome = off_terminal(command, "--help", env=environment(COLUMNS="60"))
        assert outcome.returncode == 0
        assert outcome.stdout.startswith(f"Usage: slimc {command} ")
        assert "…" not in outcome.stdout
        assert max(map(len, outcome.stdout.splitlines())) <= 60
        assert not re.search(r"<\w+(\[\w+\])?>", outcome.stdout)  # types of Python

    def test_wide_and_narrow_help_say_the_same(self):
        wide, narrow = (on_terminal("export", "--help", columns=columns).text.split() for columns in (160, 60))
        assert wide == narrow

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_completion_is_printed_for_a_shell(self, shell):
        script = off_terminal(env=environment(_SLIMC_COMPLETE=f"source_{shell}"))
        assert (script.returncode, script.stderr) == (0, "")
        assert "_SLIMC_COMPLETE" in script.stdout
        assert "slimc" in script.stdout

    def test_completion_is_shown_on_request(self):
        shown = off_terminal("--show-completion", "bash")
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "complete -o default -F _slimc_completion slimc" in shown.stdout

    @pytest.mark.parametrize(
        ("words", "found"),
        [("slimc ex", ["export"]), ("slimc export --budget-", ["--budget-attn", "--budget-mlp", "--budget-patch"])],
    )
    def test_words_are_completed(self, words, found):
        changes = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_SLIMC_COMPLETE": "complete_bash"}
        completed = off_terminal(env=environment(**changes))
        assert (completed.returncode, completed.stdout.split()) == (0, found)


class TestPipes:
    @pytest.mark.parametrize("arguments", [("--help",), ("export", "--help"), ("doctor",), ("inspect", CHECKPOINT)])
    def test_what_reads_the_output_may_go_away(self, arguments):
        command = [*COMMAND, *map(str, arguments)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment(), **pipes) as process:
            assert process.stdout
            assert process.stderr
            process.stdout.close()
            assert process.stderr.read() == ""
        assert process.returncode == 141

    def test_head_gets_its_line(self):
        line = subprocess.run(
            ["bash", "-c", '"$@" | head -1; exit ${PIPESTATUS[0]}', "bash", *COMMAND, "--help"],
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
        )
        assert line.stdout == "Usage: slimc [OPTIONS] COMMAND [ARGS]...\n"
        assert line.returncode in (0, 141)
        assert line.stderr == ""

    def test_there_are_no_colours_and_no_progress_in_pipes(self, folder):
        outcome = off_terminal("verify", folder / "m.onnx", "--against", CHECKPOINT, "--data", folder / "images")
        assert outcome.returncode == 0
        assert "\x1b" not in outcome.stdout + outcome.stderr
        assert outcome.stderr == ""
        assert "\x1b" not in off_terminal("verify", "none.onnx").stderr

    def test_columns_of_tables_stay_in_pipes(self, folder):
        outcome = off_terminal("inspect", folder / "m.onnx", env=environment(COLUMNS="60"))
        assert re.search(r"block +head widths +computed as +FFN +tokens +keys +ghosts +MACs +of dense", outcome.stdout)


class TestTables:
    @pytest.mark.parametrize("command", ["inspect", "verify", "doctor", "export", "bench"])
    def test_what_does_not_fit_becomes_records(self, command, folder, tmp_path):
        model = folder / "m.onnx"
        given = {
            "inspect": (model,),
            "verify": (model, model),
            "doctor": (),
            "export": (CHECKPOINT, "-o", "short.onnx"),
            "bench": (model, "--seconds", "0.05"),
        }[command]
        screen = on_terminal(command, *given, columns=60, cwd=tmp_path)
        assert screen.code == 0
        lines = [line for line in screen.lines if not line.startswith("warning: ")]
        assert max(map(len, lines)) <= 60
        assert "…" not in screen.text
        whole = set(re.findall(r"[a-z]+", off_terminal(command, *given, cwd=tmp_path).stdout))
        assert set(re.findall(r"[a-z]+", "\n".join(lines))) <= whole

    def test_a_record_is_indented_and_its_continuation_stands_below_its_text(self, folder):
        lines = on_terminal("inspect", folder / "m.onnx", columns=60).lines
        start = lines.index("block blocks.0")
        assert lines[start + 1].startswith("  head widths  ")
        legend = lines.index("head widths  channels that every head keeps, in the order of")
        assert lines[legend + 1].startswith(" " * 13 + "the checkpoint")

    def test_a_table_that_fits_stays_one(self, folder):
        text = on_terminal("inspect", folder / "m.onnx", columns=120).text
        assert "block blocks.0" not in text
        assert re.search(r"blocks\.0 +\d", text)


class TestTerminal:
    def test_progress_counts_images(self, folder, tmp_path):
        screen = on_terminal("export", CHECKPOINT, "-o", tmp_path / "m.onnx", "--data", folder / "images", columns=100)
        assert screen.code == 0
        counts = re.findall(r"comparing with the PyTorch network [━╸╺ ]+ *(\d+)/44", screen.text)
        assert counts[-1] == "44"
        against = ("--against", CHECKPOINT, "--data", folder / "images")
        verified = on_terminal("verify", tmp_path / "m.onnx", *against, columns=100)
        assert re.search(r"running m.onnx [━╸╺ ]+ *44/44", verified.text)

    def test_quiet_is_silent(self, folder, tmp_path):
        screen = on_terminal("export", CHECKPOINT, "-o", tmp_path / "m.onnx", "--data", folder / "images", "--quiet")
        assert (screen.code, screen.raw) == (0, "")
        for given in (("verify", folder / "m.onnx"), ("bench", folder / "m.onnx", "--seconds", "0.05"), ("doctor",)):
            outcome = off_terminal(*given, "--quiet")
            assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "", "")

    def test_an_output_that_was_there_is_said_to_be_replaced(self, tmp_path):
        first, second = (on_terminal("export", CHECKPOINT, "-o", "m.onnx", cwd=tmp_path) for _ in range(2))
        assert "replaced" not in first.text
        assert "wrote m.onnx and m.reference.npz (replaced m.onnx, m.reference.npz)" in " ".join(second.text.split())

    def test_colours_are_for_terminals_that_want_them(self, tmp_path):
        plain, coloured, dumb = (
            on_terminal("export", tmp_path / "none.pth", columns=200, env=env).raw
            for env in (environment(NO_COLOR="1"), environment(), environment(TERM="dumb"))
        )
        assert COLOUR.search(coloured)
        assert not COLOUR.search(plain)
        assert dumb == f"error: {tmp_path / 'none.pth'}: no such file\r\n"
        assert not COLOUR.search(off_terminal("export", tmp_path / "none.pth").stderr)


class TestInterrupts:
    @pytest.mark.parametrize("word", ["reading", "writing", "comparing"])
    def test_on_a_terminal(self, word, folder, tmp_path):
        given = ("export", CHECKPOINT, "-o", "m.onnx", "--data", folder / "images")
        screen = on_terminal(*given, cwd=tmp_path, interrupt=lambda text: word in text)
        assert screen.code == 130
        assert screen.lines[-1] == "interrupted"
        assert "Traceback" not in screen.text
        assert snapshot(tmp_path) == {}

    @pytest.mark.parametrize("seconds", [0.6, 1.2])
    def test_off_a_terminal(self, seconds, tmp_path):
        command = [*COMMAND, "export", str(CHECKPOINT), "-o", "m.onnx", "--check-passes"]
        how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
        process = subprocess.Popen(command, env=environment(), **how)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout, stderr) == (130, "", "interrupted\n")
        assert snapshot(tmp_path) == {}

    def test_while_the_command_line_is_imported(self, tmp_path):
        script = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
from slimc.__main__ import main
main()
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


class TestBench:
    @pytest.mark.parametrize(("threads", "count"), [(8, 2), (2, 1)])
    def test_more_threads_than_cores_end_in_time_and_are_warned_of(self, folder, threads, count):
        usable = sorted(os.sched_getaffinity(0))[:count]
        if len(usable) < count:
            pytest.skip(f"this process may use {len(usable)} cores")
        script = """
import sys, time, slimc
from slimc.cli.main import run
slimc.bench(sys.argv[2], seconds=0.01)  # imports and loads everything
start = time.perf_counter()
code = run()
print(time.perf_counter() - start, file=sys.stderr)
sys.exit(code)
"""
        given = ["bench", str(folder / "m.onnx"), "--seconds", "0.3", "--threads", str(threads)]
        done = subprocess.run(
            [sys.executable, "-c", script, *given],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment(),
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, usable),
        )
        assert done.returncode == 0, done.stderr
        assert f"warning: {threads} threads share {count} core(s)" in done.stderr
        assert 0.3 <= float(done.stderr.splitlines()[-1]) < 5

    def test_percentiles_are_printed_from_as_many_runs_on_as_they_need(self, folder):
        screen = on_terminal("bench", folder / "m.onnx", "--seconds", "0.02", "--threads", "1", columns=120)
        assert screen.code == 0
        header = next(line.split() for line in screen.lines if "median ms" in line)
        assert header[-1] == "runs"
        row = next(line.split() for line in screen.lines if line.strip().startswith("m.onnx "))
        p90, p99, runs = row[3], row[4], int(row[-1])
        assert (p90 == "-", p99 == "-") == (runs < 10, runs < 100)


def test_the_worst_input_is_named_by_its_file(folder, tmp_path):
    """Noise is beyond the limits of this network's capacities, so that images alone are judged."""
    given = ("--adaptive", "capacity", "--data", folder / "images")
    exported = slimc("export", VECTORS["tokens"], "-o", tmp_path / "a.onnx", *given)
    assert exported.code == 0, exported.stderr
    assert re.search(r"worst on image \S+\d\d\.png", exported.stdout)
    checked = slimc("verify", tmp_path / "a.onnx", "--against", VECTORS["tokens"], "--data", folder / "images")
    assert checked.code == 0, checked.stderr
    assert re.search(r"worst input +\d\d\.png", checked.stdout)
