"""The deploy side works where torch and timm are not installed, and help costs nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import vectors
from tests.checkpoints import small_checkpoint
from tests.command_line import slimc

# Importing one of these fails, as on a machine that does not have it.
HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""
COMPILE_SIDE = ("torch", "torchvision", "timm", "safetensors")
BACK_ENDS = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda", "pynvml", "matplotlib")


def python(script: str, *arguments: str | Path, hidden: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDE.format(hidden=hidden) + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def deploy_side() -> list[str]:
    """Every module of slimc but those of networks, which are torch modules."""
    root = Path(__file__).parents[2] / "slimc"
    found = (path.relative_to(root.parent).with_suffix("").parts for path in root.rglob("*.py"))
    names = {".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in found}
    shared = {f"slimc.models.{name}" for name in ("options", "geometry", "preprocessing")}
    networks = ("slimc.models.", "slimc.pytorch")
    return sorted(name for name in names - {"slimc.__main__"} if not name.startswith(networks) or name in shared)


def test_deploy_side_modules_import_without_torch_timm_and_any_back_end():
    wanted = deploy_side()
    script = f"""
import importlib
for name in {wanted!r}:
    importlib.import_module(name)
print(len({wanted!r}))
"""
    outcome = python(script, hidden=COMPILE_SIDE + BACK_ENDS)
    assert outcome.stderr == ""
    assert int(outcome.stdout) == len(wanted) > 40


@pytest.mark.parametrize("arguments", ["--help", "--version", "export --help", "inspect --help", "demo --help"])
def test_help_imports_none_of_what_is_slow(arguments):
    script = f"""
sys.argv = ["slimc", *{arguments.split()!r}]
from slimc.cli import main as cli
code = cli.run()
slow = ("torch", "timm", "onnx", "onnx_ir", "onnxruntime", "numpy", "matplotlib", "tensorrt_rtx", "openvino")
print(*sorted(set(slow) & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""
    outcome = python(script)
    assert outcome.returncode == 0
    assert outcome.stderr.split() == []


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    path = directory / "model.onnx"
    assert slimc("export", small_checkpoint(directory / "c.pth"), "-o", path, "--quiet").code == 0
    return path


def test_models_are_inspected_and_verified_without_torch_and_timm(exported):
    script = """
from slimc.cli import main as cli
sys.argv = ["slimc", *sys.argv[1:]]
sys.exit(cli.run())
"""
    inspected = python(script, "inspect", exported, "--json", hidden=COMPILE_SIDE)
    assert (inspected.returncode, inspected.stderr) == (0, "")
    assert json.loads(inspected.stdout)["variant"] == "slim"
    verified = python(script, "verify", exported, "--json", hidden=COMPILE_SIDE)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert json.loads(verified.stdout)["passed"] is True


def test_compiling_without_torch_says_what_to_install(exported):
    script = """
from slimc.cli import main as cli
sys.argv = ["slimc", *sys.argv[1:]]
sys.exit(cli.run())
"""
    outcome = python(script, "export", exported.with_name("c.pth"), "-o", exported, hidden=COMPILE_SIDE)
    assert outcome.returncode == 3
    assert "Traceback" not in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1
    assert "slimc[compile]" in outcome.stderr


@pytest.mark.parametrize(
    ("checkpoint", "flags", "others"),
    [
        ("vitslim-a-channel-0.7", [], ("dynamic_vit", "ada_vit", "t2t")),
        ("dynamicvit-a-deit-0.7", ["--num-heads", "4", "--pruning-loc", "3,6,9"], ("vit_slim", "ada_vit", "t2t")),
        ("adavit-a-head-layer", [], ("vit_slim", "dynamic_vit")),
    ],
)
def test_an_export_imports_no_module_of_another_system(checkpoint, flags, others, tmp_path):
    script = f"""
from slimc.cli.main import run
sys.argv = ["slimc", *sys.argv[1:]]
code = run()
found = [name for name in sys.modules if name.startswith("slimc.") and any(other in name for other in {others!r})]
print(*found, file=sys.stderr)
sys.exit(code)
"""
    source = vectors.DATA / checkpoint / "checkpoint.pth"
    outcome = python(script, "export", source, "-o", tmp_path / "m.onnx", "--quiet", *flags)
    assert (outcome.returncode, outcome.stderr.split()) == (0, [])


def test_importing_slimc_imports_nothing_that_is_slow():
    script = """
import time
start = time.perf_counter()
import slimc
print(time.perf_counter() - start, *sorted({"torch", "onnx", "numpy", "typer", "rich"} & set(sys.modules)))
"""
    seconds, *slow = python(script).stdout.split()
    assert slow == []
    assert float(seconds) < 0.5  # 0.01 here: this only finds an import that should not be there
