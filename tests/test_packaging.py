"""The wheel holds what it should, under the names it should."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files in the wheel, which is built from a copy: building writes into the source tree."""
    source = tmp_path_factory.mktemp("source")
    for name in ("slimc", "passes", "models"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    built = subprocess.run([*command, target, source], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = target.glob("slimc-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_every_module_of_the_source_is_in_the_wheel(names):
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "slimc").rglob("*.py")}
    for folder in ("passes", "models"):
        modules |= {f"slimc/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_packages_are_under_slimc_and_nowhere_else(names):
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"slimc"}
    for package in ("passes", "models", "backends", "cli/commands"):
        assert f"slimc/{package}/__init__.py" in names


def test_types_data_and_licence_are_in_the_wheel(names):
    assert "slimc/py.typed" in names
    assert {"slimc/cli/data/digits.pth", "slimc/cli/data/digits.npz"} <= set(names)
    assert {f"slimc/targets/data/tuning-{threads}-threads.json" for threads in (1, 2)} <= set(names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert any(name.endswith(".dist-info/entry_points.txt") for name in names)
