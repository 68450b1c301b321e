"""The command line: names the commands, turns errors into exit codes.

Exit codes: 0 done; 1 outputs do not match; 2 bad usage or bad input; 3 something is missing on this machine;
70 a defect of slimc, with its traceback; 130 interrupted; 141 what read the output went away.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer

from slimc.cli.commands import bench, build_engine, demo, doctor, export, inspect, tune, verify
from slimc.cli.commands import eval as evaluate
from slimc.cli.help import Command, Group
from slimc.errors import InternalError, SlimcError

# What typer raises for bad usage; it does not export the class.
_UsageError: Any = typer.BadParameter.__mro__[1]

_INTERRUPTED, _BROKEN_PIPE = 130, 141  # as a shell says it: 128 and the number of the signal
# The option that takes several KEY=VALUE, and what is one.
_ASSIGNMENTS, _ASSIGNMENT = "--model-kwargs", re.compile(r"[A-Za-z_]\w*=")

app = typer.Typer(
    name="slimc",
    help="Compile searched vision transformers (ViT-Slim, DynamicViT, AdaViT) into networks that are really small.",
    epilog="Start with: slimc demo",
    cls=Group,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMPILE, _CHECK, _MACHINE = "Compile", "Check and measure", "This machine"
for _name, _command, _panel in (
    ("export", export, _COMPILE),
    ("build-engine", build_engine, _COMPILE),
    ("inspect", inspect, _CHECK),
    ("verify", verify, _CHECK),
    ("eval", evaluate, _CHECK),
    ("bench", bench, _CHECK),
    ("tune", tune, _MACHINE),
    ("doctor", doctor, _MACHINE),
    ("demo", demo, _MACHINE),
):
    app.command(
        _name,
        cls=Command,
        help=_command.HELP,
        short_help=_command.SUMMARY,
        epilog=_command.EXAMPLE,
        rich_help_panel=_panel,
    )(_command.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from slimc.files.version import VERSION

        typer.echo(f"slimc {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Entry point of the `slimc` command."""
    signal.signal(signal.SIGTERM, _terminate)
    code = _flushed(run())
    # Python ends by a signal of its own where an interrupt came while a module ran `exec`, though it was caught.
    if "torch" in sys.modules or code == _INTERRUPTED:
        _leave(code)
    sys.exit(code)


def _flushed(code: int) -> int:
    """`code`, or that of a broken pipe where what is left to print cannot be printed any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Whatever Python flushes at its end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return code


def _leave(code: int) -> NoReturn:
    """End the process without tearing torch down: that takes 0.6 s and 100 MB, and every file is closed by now."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def run() -> int:
    """Run the command line and return its exit code."""
    try:
        # The name is that however it was started, for help and completion.
        code = app(_repeated(sys.argv[1:]), standalone_mode=False, prog_name="slimc")
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except BrokenPipeError:
        code = _BROKEN_PIPE
    except SystemExit as error:
        # typer's own answer to a broken pipe is exit code 1, which here says that outputs do not match.
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        code = _BROKEN_PIPE
    except _UsageError as error:
        return _say(f"{error.format_message()} (see --help)", 2)
    except InternalError as error:
        traceback.print_exc()
        return error.exit_code
    except SlimcError as error:
        return _say(str(error), error.exit_code)
    except Exception:
        traceback.print_exc()
        return SlimcError.exit_code
    if code == _INTERRUPTED:
        sys.stderr.write("interrupted\n")
    return code if isinstance(code, int) else 0


def _repeated(arguments: list[str]) -> list[str]:
    """`arguments` with the option of several KEY=VALUE, as timm's scripts take them, repeated before each of them."""
    found: list[str] = []
    taking, started = False, False
    for i, argument in enumerate(arguments):
        if argument == "--":
            return [*found, *arguments[i:]]
        if taking and _ASSIGNMENT.match(argument):
            found += [argument] if started else [_ASSIGNMENTS, argument]
        else:
            taking = argument.split("=", 1)[0] == _ASSIGNMENTS
            found.append(argument)
        started = argument == _ASSIGNMENTS
    return found


def _say(message: str, code: int) -> int:
    """Print a user's mistake as one line; the exit code `code`."""
    from slimc.cli.console import print_error

    print_error(message)
    return code


def _terminate(_signal: int, _frame: object) -> None:
    """End by an exception, so that temporary files are removed."""
    raise SystemExit(143)
