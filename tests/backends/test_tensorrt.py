"""Plain TensorRT, as far as a machine without a GPU can tell: its types, and what is said where it is missing."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slimc.backends import cuda, tensorrt
from slimc.errors import MissingError

ROOT = Path(__file__).parents[2]


def readable(text: str) -> str:
    """The stubs without the definitions that are no Python: parameters called ``in``, defaults out of order."""
    lines = text.splitlines()
    while (number := first_error("\n".join(lines))) is not None:
        indent = len(lines[number]) - len(lines[number].lstrip())
        lines[number] = " " * indent + "def unreadable(self) -> None:"
    return "\n".join(lines)


def first_error(text: str) -> int | None:
    """The first line of `text` that is no Python."""
    try:
        ast.parse(text)
    except SyntaxError as error:
        return None if error.lineno is None else error.lineno - 1
    return None


def test_the_code_type_checks_against_the_published_stubs(tmp_path):
    pytest.importorskip("mypy")
    if importlib.util.find_spec("tensorrt_stubs") is None:
        pytest.skip("needs pip install --no-deps tensorrt-stubs")
    found = importlib.util.find_spec("tensorrt_stubs")
    assert found is not None
    assert found.origin is not None
    packages = Path(found.origin).parents[1]
    for name in ("tensorrt/__init__.pyi", "tensorrt_bindings/__init__.pyi", "tensorrt_bindings/tensorrt.pyi"):
        copy = tmp_path / "stubs" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(readable((packages / name).read_text()))
    options = [
        "--config-file=",
        "--follow-imports=skip",
        "--ignore-missing-imports",
        f"--cache-dir={tmp_path / 'cache'}",
    ]
    sources = ["slimc/backends/tensorrt.py", "slimc/backends/tensorrt_common.py", *map(str, tmp_path.rglob("*.pyi"))]
    environment = {**os.environ, "MYPYPATH": str(tmp_path / "stubs")}
    command = [sys.executable, "-m", "mypy", *options, *sources]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert "tensorrt.pyi" in run.stdout, "the stubs have errors of their own; none of them seen means none were read"
    assert [line for line in run.stdout.splitlines() if line.startswith("slimc/")] == []


def test_without_the_package_it_says_what_to_install():
    try:
        import tensorrt as installed
    except ImportError:
        pass
    else:
        if hasattr(installed, "__version__"):
            pytest.skip("this machine has TensorRT")
    with pytest.raises(MissingError, match=r"pip install 'slimc\[gpu\]'"):
        tensorrt.library()


def test_without_a_gpu_a_device_says_so():
    if cuda.gpu_missing() is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(MissingError, match="running an engine needs a GPU"):
        cuda.open_device()
    with pytest.raises(MissingError, match="running an engine needs a GPU"):
        tensorrt.this_target()


def test_an_old_version_is_refused(tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text("__version__ = '10.11.0.33'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(MissingError, match=r"tensorrt 10\.11\.0\.33 is too old"):
        tensorrt.library()
    sys.modules.pop("tensorrt", None)
