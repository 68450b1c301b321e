"""Every benchmark can be started: what it imports is there, and it says what it takes."""

import importlib
import importlib.util
from pathlib import Path

import pytest

# What the extra `bench` brings, by the benchmarks that cannot be imported without it.
EXTRAS = {"torch_export": "onnxslim", "pruning": "torch_pruning", "latency": "torch_pruning", "run": "torch_pruning"}
NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "benchmarks").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_can_be_imported(name):
    extra = EXTRAS.get(name)
    if extra is not None and importlib.util.find_spec(extra) is None:
        pytest.skip(f"needs {extra}, of slimc[bench]")
    importlib.import_module(f"benchmarks.{name}")
