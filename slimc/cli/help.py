"""How ``--help`` looks: plain text in panels, nothing cut off at any width, and nothing imported for it."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

from slimc.cli.options import CHECKPOINT, OUTPUT, TARGET
from slimc.models.systems import SYSTEMS

_DEFAULT = "Options"
# How typer calls the types of Python, and what stands for a value of one in help.
_TYPE = re.compile(r" <(?:list\[)?(\w+)\]?>")
_VALUES = {"int": "N", "float": "X", "str": "NAME", "path": "FILE"}


def _write(formatter: Any, panels: dict[str, list[tuple[str, str]]]) -> None:  # noqa: ANN401 - typer does not export it
    """Write the panels that have rows, in order."""
    for title, rows in panels.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def option_panels(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:  # noqa: ANN401
    """Names and help of arguments and options, by their panel: a checkpoint's, with one a system, before the output's."""
    titles = ("Arguments", _DEFAULT, CHECKPOINT, *(system.title for system in SYSTEMS), TARGET, OUTPUT)
    panels: dict[str, list[tuple[str, str]]] = {title: [] for title in titles}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        is_argument = parameter.param_type_name == "argument"
        title = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or _DEFAULT
        name, text = record
        panels.setdefault(title, []).append((_TYPE.sub("" if is_argument else _value, name), text))
    return panels


def command_panels(group: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:  # noqa: ANN401
    """Names and summaries of commands, by their panel."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if command is not None and not command.hidden:
            title = getattr(command, "rich_help_panel", None) or "Commands"
            panels.setdefault(title, []).append((name, command.short_help or ""))
    return panels


def _value(found: re.Match[str]) -> str:
    return " " + _VALUES.get(found[1].lower(), found[1].upper())


class Command(TyperCommand):
    """A command whose options stand in their panels."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write all options."""
        _write(formatter, option_panels(self, ctx))


class Group(TyperGroup):
    """The command line, whose commands stand in their panels."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write all commands, and the few options that they share."""
        _write(formatter, {**command_panels(self, ctx), **option_panels(self, ctx)})
