"""The command line: names the commands, turns errors into exit codes.

Exit codes: 0 done; 1 outputs do not match; 2 bad usage or bad input; 3 something is missing on this machine;
70 a defect of slimc, with its traceback; 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer

from slimc import __version__
from slimc.cli.commands import bench, build_engine, demo, doctor, export, inspect, tune, verify
from slimc.errors import InternalError, SlimcError

# What typer raises for bad usage; it does not export the class.
_UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="slimc",
    help="Compile searched vision transformers (ViT-Slim, DynamicViT, AdaViT) into networks that are really small.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("export", help=export.HELP, epilog=export.EXAMPLE)(export.command)
app.command("inspect", help=inspect.HELP, epilog=inspect.EXAMPLE)(inspect.command)
app.command("build-engine", help=build_engine.HELP, epilog=build_engine.EXAMPLE)(build_engine.command)
app.command("verify", help=verify.HELP, epilog=verify.EXAMPLE)(verify.command)
app.command("bench", help=bench.HELP, epilog=bench.EXAMPLE)(bench.command)
app.command("tune", help=tune.HELP, epilog=tune.EXAMPLE)(tune.command)
app.command("doctor", help=doctor.HELP, epilog=doctor.EXAMPLE)(doctor.command)
app.command("demo", help=demo.HELP, epilog=demo.EXAMPLE)(demo.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"slimc {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `slimc` command."""
    signal.signal(signal.SIGTERM, _terminate)
    code = run()
    if "torch" in sys.modules:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End the process without tearing torch down: that takes 0.6 s and 100 MB, and every file is closed by now."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def run() -> int:
    """Run the command line and return its exit code."""
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("interrupted\n")
        return 130
    except _UsageError as error:
        from slimc.cli.console import print_error

        print_error(f"{error.format_message()} (see --help)")
        return 2
    except InternalError as error:
        traceback.print_exc()
        return error.exit_code
    except SlimcError as error:
        from slimc.cli.console import print_error

        print_error(str(error))
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return SlimcError.exit_code
    return code if isinstance(code, int) else 0


def _terminate(_signal: int, _frame: object) -> None:
    """End by an exception, so that temporary files are removed."""
    raise SystemExit(143)
