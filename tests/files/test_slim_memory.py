"""Slim files are written and read within twice their size of memory."""

import subprocess
import sys
from pathlib import Path

import pytest

# What a network of this depth and width takes, by the largest memory of a process that makes or reads it.
MAKE = """
import resource, sys
from pathlib import Path
import numpy as np
from slimc import ir
from slimc.files.slim import SlimFile, write_slim
from slimc.ir.preprocessing import Preprocessing

depth, dim, heads = map(int, sys.argv[2:])
random = np.random.default_rng(0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def array(*shape):
    return random.standard_normal(shape, np.float32)

def linear(out, into):
    return ir.Linear(array(out, into), array(out))

def split(count):
    whole, output, width = array(3 * dim, dim), array(dim, dim), dim // count
    for i in range(count):
        rows = [slice(part * dim + i * width, part * dim + (i + 1) * width) for part in range(3)]
        query, key, value = (ir.Linear(whole[row]) for row in rows)
        yield ir.Head(query, key, value, output[:, i * width : (i + 1) * width])

def norm():
    return ir.LayerNorm(array(dim), array(dim), 1e-6)

blocks = tuple(
    ir.Block(
        f"blocks.{i}",
        ir.Attention(norm(), tuple(split(heads)), array(dim), 1.0),
        ir.Mlp(norm(), linear(4 * dim, dim), linear(dim, 4 * dim)),
    )
    for i in range(depth)
)
embedding = ir.Embedding(ir.PatchEmbed(array(dim, 3, 14, 14), None), array(1, dim), None, array(256, dim))
model = ir.Model((224, 224), embedding, blocks, ir.Classifier(norm(), (0,), (linear(1000, dim),)))
write_slim(Path(sys.argv[1]), SlimFile(model, "plain_vit", "0" * 64, Preprocessing(), {"architecture": "random"}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
READ = """
import resource, sys
from pathlib import Path
from slimc.files.slim import read_slim

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
content = read_slim(Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def grown(script: str, *arguments: object) -> int:
    """Bytes by which the memory of a process grew that ran `script`."""
    outcome = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return 1024 * int(outcome.stdout)


def check(path: Path, depth: int, dim: int, heads: int, least: int) -> None:
    made = grown(MAKE, path, depth, dim, heads)
    size = path.stat().st_size
    assert size > least
    assert made < 2 * size
    assert grown(READ, path) < 2 * size


def test_a_network_of_80_million_weights(tmp_path):
    check(tmp_path / "base.safetensors", 11, 768, 12, 300_000_000)


@pytest.mark.slow
def test_vit_huge(tmp_path):
    check(tmp_path / "huge.safetensors", 32, 1280, 16, 2_500_000_000)
