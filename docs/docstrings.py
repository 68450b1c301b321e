"""Docstrings are plain text with code in backticks, and the site renders markdown: this makes the one of the other."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Examples?):$")


class PlainText(griffe.Extension):
    """Escape what markdown would take for markup, and keep the layout of algebra."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:  # noqa: ANN401 - griffe passes what it likes
        """Rewrite the docstring of `obj`."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """`text` with its sections as griffe knows them, its algebra as code blocks, and nothing else that is markup."""
    section = ""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        lines = paragraph.split("\n")
        if not lines[0].startswith(" "):
            found = _SECTION.match(lines[0])
            section = found[1] if found else ""
            if section.startswith("Example"):
                lines[0] = "Examples:"
        if section.startswith("Example") or (not section and lines[0].startswith("    ")):
            paragraphs.append("\n".join(lines))
        elif not section and any(re.search(r"\S  +\S", line) for line in lines):
            paragraphs.append("\n".join("    " + line for line in lines))
        else:
            paragraphs.append("\n".join(_escaped(line) for line in lines))
    return "\n\n".join(paragraphs)


def _escaped(line: str) -> str:
    """`line` with what is markup outside of backticks escaped."""
    parts = re.split(r"(`+[^`]+`+)", line)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*\[\]<])", r"\\\1", part) for part in parts)
