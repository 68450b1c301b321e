"""The library's public names, and the examples in their docstrings, run on real checkpoints."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import shutil
from pathlib import Path

import pytest

import slimc
from slimc.evaluate import tune
from tests import vectors
from tests.digits import write_digits

PUBLIC = {
    *(
        "accuracy",
        "load",
        "mask",
        "compile",
        "export",
        "export_program",
        "from_torch",
        "save",
        "verify",
        "build_engine",
        "bench",
        "tune",
        "read_metadata",
        "find_target",
    ),
    "AccuracyReport",
    *("Network", "Compiled", "ExportReport", "Verdict", "EngineReport", "Measurement", "Metadata", "Target", "Tuning"),
    *("SlimcError", "UserError", "CheckpointError", "BudgetError", "OptionError", "ModelFileError", "OutputError"),
    *("MismatchError", "MissingError"),
}
COMMANDS = Path(slimc.__file__).parent / "cli" / "commands"
FUNCTIONS = [name for name in sorted(PUBLIC) if inspect.isfunction(getattr(slimc, name))]


def test_these_are_the_public_names():
    assert set(slimc.__all__) == PUBLIC
    assert set(dir(slimc)) == PUBLIC | {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'compress'"):
        _ = slimc.compress  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_name_is_documented_and_typed(name):
    found = getattr(slimc, name)
    assert found.__doc__
    if inspect.isfunction(found):
        assert ">>>" in found.__doc__
        signature = inspect.signature(found)
        described = found.__doc__
        assert signature.return_annotation is not inspect.Signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty
            assert f"        {parameter.name}: " in described, f"{name} does not say what {parameter.name} is"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples run: with the checkpoints that they name, and an exported model."""
    directory = tmp_path_factory.mktemp("examples")
    shutil.copyfile(vectors.DATA / "vitslim-digits-a" / "retrained.pth", directory / "digits.pth")
    shutil.copyfile(vectors.DATA / "vitslim-digits-a" / "searched.pth", directory / "searched.pth")
    network = slimc.load(directory / "digits.pth", mean=0.5, std=0.5, crop_pct=1.0)
    slimc.export(network, directory / "digits.onnx", target="cpu", threads=1)
    write_digits(directory / "digits")
    return directory


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(recurse=False)
    methods = {"Compiled.export": slimc.Compiled.export, "Compiled.to_torch": slimc.Compiled.to_torch}
    documented = [*((name, getattr(slimc, name)) for name in FUNCTIONS), *methods.items()]
    return [test for name, found in documented for test in finder.find(found, name, module=False)]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_every_example_runs(example: doctest.DocTest, workplace: Path, monkeypatch: pytest.MonkeyPatch):
    if example.name == "build_engine" and importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("needs slimc[rtx]")
    monkeypatch.chdir(workplace)
    for name, fewer in {"_DIMS": (48,), "_SIDES": (4, 5), "_LOADINGS": 1, "_ROUNDS": 1}.items():
        monkeypatch.setattr(tune, name, fewer)  # which saves a quarter of a minute; everything else is real
    example.globs = {"slimc": slimc, "slim": slimc.compile(slimc.load("digits.pth"))}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    assert example.examples
    assert runner.run(example).failed == 0


@pytest.mark.parametrize("command", sorted(path.stem for path in COMMANDS.glob("[a-z]*.py")))
def test_commands_stand_on_the_library(command):
    """What a command does, it does by a public function; it imports no more of the compiler than what it prints."""
    tree = ast.parse((COMMANDS / f"{command}.py").read_text())
    typing_only = {id(node) for block in ast.walk(tree) if _is_type_checking(block) for node in ast.walk(block)}
    imports = {
        node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and id(node) not in typing_only
    }
    working = ("slimc.compiler", "slimc.models", "slimc.emit", "slimc.passes", "slimc.ir", "slimc.targets")
    assert not [name for name in imports if name.startswith(working)]


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_a_module_is_found_by_the_name_that_scripts_know():
    moved = importlib.import_module("slimc.images")
    here = importlib.import_module("slimc.files.images")
    assert moved.__file__ == here.__file__
    with pytest.raises(ModuleNotFoundError, match="pictures"):
        importlib.import_module("slimc.pictures")
