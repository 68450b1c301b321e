"""Damaged slim files give a clean error or the same network; forged ones a clean error or a network that is one."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimc import ir
from slimc.compiler.compile import compile_network
from slimc.compiler.load import load_network
from slimc.compiler.options import CompileOptions
from slimc.errors import UserError
from slimc.ir.interpret.model import trace
from slimc.ir.validate import validate
from slimc.targets.target import find_target
from tests.files.damage import damaged
from tests.files.slim_files import changed, rich_network, whole
from tests.plain_networks import images_of

# What a number, a text or a list may be changed to.
_OTHERS: tuple[Any, ...] = (
    *(
        0,
        1,
        -1,
        2,
        3,
        7,
        1 << 20,
        1 << 31,
        1 << 63,
        -(1 << 40),
        0.0,
        0.5,
        -2.5,
        1e30,
        1e-300,
        True,
        None,
        "",
        "x",
        [],
        {},
    ),
    *(
        "blocks.0.attention.norm.weight",
        "embedding.prefix",
        "blocks.0.live",
        "I64",
        "F64",
        "LayerNorm",
        "Mlp",
        "Constant",
    ),
    *("blocks.0.attention.heads.output[:,0:4]", "blocks.0.attention.heads.query.weight[0:4]", [1, 1], [0, 8], [[1]]),
)


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every key of every dict and list below `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if key != "slimc.sha256":
            found.append((value, key))
            places(item, found)
    return found


def forged(content: bytes, seed: int) -> bytes:
    """`content` with something in its header changed, and the digest that it has then."""
    chance = random.Random(seed)

    def change(header: dict[str, Any]) -> None:
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            there = places(header if chance.random() < 0.1 else header["__metadata__"], [])
            numbers = [(place, key) for place, key in there if isinstance(place[key], (int, float))]
            place, key = chance.choice(there if chance.random() < 0.5 else numbers)
            kind = chance.choice(("replace", "replace", "take", "drop", "nudge", "nudge"))
            if kind == "drop":
                del place[key]
            elif kind == "nudge" and isinstance(place[key], (int, float)):
                place[key] += chance.choice((1, -1, 0.5))
            elif kind == "take":
                source, other = chance.choice(numbers if isinstance(place[key], (int, float)) else there)
                place[key] = source[other]
            else:
                place[key] = chance.choice(_OTHERS)

    try:
        return changed(content, change)
    except (
        AttributeError,
        KeyError,
        RecursionError,
        TypeError,
        ValueError,
    ):  # what was changed cannot be written any more
        return damaged(content, seed)


def clean(error: UserError, path: Path) -> bool:
    return error.exit_code == 2 and "\n" not in str(error) and str(error).startswith(str(path))


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return whole(tmp_path / "whole.safetensors")


def outcome_of_damage(path: Path, broken: bytes, expected: ir.FloatArray) -> str:
    path.write_bytes(broken)
    try:
        model = load_network(path).masked
    except UserError as error:
        assert clean(error, path), error
        return "error"
    assert np.array_equal(trace(model, images_of(model)).outputs["logits"], expected)
    return "same"


def check_damage(directory: Path, content: bytes, count: int) -> Counter[str]:
    model = rich_network(pool="latent")
    expected = trace(model, images_of(model)).outputs["logits"]
    path = directory / "damaged.safetensors"
    return Counter(outcome_of_damage(path, damaged(content, seed), expected) for seed in range(count))


def outcome_of_forgery(path: Path, broken: bytes) -> str:
    path.write_bytes(broken)
    try:
        network = load_network(path)
    except UserError as error:
        assert clean(error, path), error
        return "error"
    validate(network.masked)
    for target in ("generic", "cpu", "sm89"):
        try:
            compile_network(network, CompileOptions(target=find_target(target)))
        except UserError as error:
            assert "\n" not in str(error)
            return "not compiled"
    return "network"


def check_forgeries(directory: Path, content: bytes, count: int) -> Counter[str]:
    path = directory / "forged.safetensors"
    return Counter(outcome_of_forgery(path, forged(content, seed)) for seed in range(count))


def test_a_damaged_file_is_an_error_or_the_same_network(content, tmp_path):
    assert check_damage(tmp_path, content, 300)["error"] > 280


def test_a_forged_file_is_an_error_or_a_network(content, tmp_path):
    found = check_forgeries(tmp_path, content, 150)
    assert found["error"] > 75
    assert found["network"] > 5


@pytest.mark.slow
def test_so_are_thousands(content, tmp_path):
    assert check_damage(tmp_path, content, 2000)["error"] > 1900
    assert check_forgeries(tmp_path, content, 6000)["network"] > 200
