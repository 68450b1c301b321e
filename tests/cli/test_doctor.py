"""What doctor asks for is what a command needs, and what it says installs it does."""

import re
from pathlib import Path

import pytest

from slimc.cli.doctor import PACKAGES, Package, abilities, examine

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and newer read TOML")
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def installed_by(extra: str) -> set[str]:
    """Names of what an extra installs, with those of the extras that it takes in."""
    names: set[str] = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        inner = re.match(r"slimc\[(.+)\]", requirement)
        names |= (
            set().union(*map(installed_by, inner[1].split(","))) if inner else {re.split(r"[><=\[]", requirement)[0]}
        )
    return names


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.names[0])
def test_the_command_that_is_named_installs_the_package(package: Package):
    extra = re.search(r"slimc\[(.+)\]", package.install)
    installed = installed_by(extra[1]) if extra else {package.install.removeprefix("pip install ")}
    assert installed & set(package.names)


def test_compiling_needs_nothing_that_its_extra_leaves_out():
    wanted = installed_by("compile") | installed_by("cpu")
    assert {finding.name for finding in examine() if finding.purpose == "compile checkpoints"} <= wanted
    assert abilities(examine())["compile"]
