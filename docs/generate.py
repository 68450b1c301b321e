"""The pages that mkdocs makes of what is written elsewhere, each time it builds, so that none of them can go stale.

reference/commands.md    what every command's ``--help`` says, with its panels as headings
reference/figures.md     benchmarks/results/results.md, with its pictures, plain_vit.md and families.md
reference/changelog.md   CHANGELOG.md
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from slimc.cli.help import command_panels, option_panels
from slimc.cli.main import app

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
EXIT_CODES = (
    "0 done; 1 outputs do not match; 2 bad usage or bad input; 3 something is missing on this machine; "
    "70 a defect of slimc, with its traceback; 130 interrupted; 141 what read the output went away."
)
PICTURES = ("latency.png", "latency-all.png", "compile.png")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the pictures that they show."""
    for path, text in (
        ("reference/commands.md", commands_page()),
        ("reference/figures.md", figures_page()),
        ("reference/changelog.md", (ROOT / "CHANGELOG.md").read_text()),
    ):
        files.append(File.generated(config, path, content=text))
    for name in PICTURES:
        files.append(File.generated(config, f"reference/{name}", abs_src_path=str(RESULTS / name)))
    return files


def figures_page() -> str:
    """The tables that `python -m benchmarks.run` wrote, under its pictures."""
    return f"""# Figures

Made by `python -m benchmarks.run`; [the glossary](../concepts/glossary.md) says what the columns are. Full-size
checkpoints are random, with zetas like those of a real search: their latencies mean something, their accuracy nothing.

![Latencies over timm's dense export](latency.png)

{(RESULTS / "results.md").read_text()}
Every case in one picture:

![All latencies](latency-all.png)

![Compile time and memory](compile.png)

## Plain vision transformers

Made by `python -m benchmarks.plain_vit`, dense, against torch.onnx.export and onnxslim; and by `python -m
benchmarks.families`, in a tiny geometry with random weights, the error as a share of an output's spread.

{(RESULTS / "plain_vit.md").read_text()}

{(RESULTS / "families.md").read_text()}
"""


def commands_page() -> str:
    """All commands, by panel, with their options, by panel."""
    group: Any = typer.main.get_command(app)
    root = group.context_class(group, info_name="slimc", **group.context_settings)
    lines = ["# Commands", "", _text(group.help), "", f"`{group.epilog}`", ""]
    for title, rows in command_panels(group, root).items():
        lines += [f"{title}:", ""]
        lines += [f"- [`slimc {name}`](#slimc-{name}): {_text(summary)}" for name, summary in rows]
        lines.append("")
    for title, rows in option_panels(group, root).items():
        lines += _panel(title, rows, 2)
    lines += ["## Exit codes", "", EXIT_CODES, ""]
    for name in group.list_commands(root):
        lines += _command(name, group.get_command(root, name), root)
    return "\n".join(lines)


def _command(name: str, command: Any, root: Any) -> list[str]:  # noqa: ANN401 - typer does not export them
    context = command.context_class(command, info_name=name, parent=root, **command.context_settings)
    usage = " ".join([f"slimc {name}", *command.collect_usage_pieces(context)])
    example = command.epilog.removeprefix("Example: ")
    lines = [
        f"## slimc {name}",
        "",
        "```text",
        usage,
        "```",
        "",
        _text(command.help),
        "",
        "```bash",
        example,
        "```",
        "",
    ]
    for title, rows in option_panels(command, context).items():
        lines += _panel(title, rows, 4)
    return lines


def _panel(title: str, rows: list[tuple[str, str]], level: int) -> list[str]:
    """A panel as a heading and a list of definitions; nothing where it is empty."""
    if not rows:
        return []
    lines = [f"{'#' * level} {title}", ""]
    for names, text in rows:
        lines += [f"`{names}`", f":   {_text(text)}", ""]
    return lines


def _text(text: str | None) -> str:
    """`text` as paragraphs of markdown, in which nothing is markup."""
    paragraphs = re.split(r"\n\s*\n", (text or "").strip())
    return "\n\n".join(re.sub(r"([\\`*_\[\]<>])", r"\\\1", " ".join(part.split())) for part in paragraphs)
