"""The JSON schemas of the command line's results, and holding a result against them and against the files it names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

SCHEMAS = Path(__file__).parents[1] / "docs" / "schemas"
SUFFIX = ".schema.json"


@cache
def schemas() -> dict[str, Any]:
    """Every schema by its file name."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(SCHEMAS.glob(f"*{SUFFIX}"))}


@cache
def validator(command: str) -> Draft202012Validator:
    """What holds a result of ``slimc COMMAND`` against its schema."""
    resources = [(name, Resource.from_contents(content)) for name, content in schemas().items()]
    registry: Registry[Any] = Registry().with_resources(resources)
    return Draft202012Validator(schemas()[command + SUFFIX], registry=registry)


def parse(text: str) -> dict[str, Any]:
    """The one JSON object that `text` is, which holds neither NaN nor an infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(text, parse_constant=refuse)
    assert isinstance(found, dict)
    return found


def check(found: dict[str, Any], command: str) -> None:
    """A result of `command` is what its schema says, and its files are what they are said to be."""
    assert found["command"] == command
    errors = sorted(validator(command).iter_errors(found), key=lambda error: error.json_path)
    assert not errors, "\n".join(f"{error.json_path}: {error.message[:300]}" for error in errors)
    for file in (*found["inputs"], *found["outputs"]):
        assert hashlib.sha256(Path(file["path"]).read_bytes()).hexdigest() == file["sha256"], file["path"]


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema in `schema` that is of an object whose keys are known, at any depth."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        for value in schema.values():
            yield from objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects(value)
