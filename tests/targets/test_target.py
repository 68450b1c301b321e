"""What a target asks for is what the exported file has: operators, opset, groups, and the same bytes every time."""

import json

import onnx
import pytest

from slimc.compiler.options import CompileOptions
from slimc.files.metadata import read_metadata
from slimc.targets.target import Target, find_target
from tests.checkpoints import Recipe, small_checkpoint
from tests.command_line import slimc


@pytest.fixture
def checkpoint(tmp_path):
    return small_checkpoint(tmp_path / "ckpt.pth", Recipe(dim=24, heads=4, hidden=24))


def exported(checkpoint, *given):
    """Operators, opset and details of ``slimc export`` with the given options, and what it wrote."""
    path = checkpoint.with_name("m.onnx")
    outcome = slimc("export", checkpoint, "-o", path, "--json", *given)
    assert outcome.code == 0, outcome.stderr
    model = onnx.load(path)
    return {node.op_type for node in model.graph.node}, model.opset_import[0].version, path


def test_several_threads_get_groups_for_the_attention_operator(checkpoint):
    operators, opset, path = exported(checkpoint, "--target", "cpu", "--threads", "2")
    assert "Attention" in operators
    assert opset == 23
    details = read_metadata(path).details
    assert details["tuned"].endswith("cpu, threads: 2")
    groups = [layer.groups for layer in read_metadata(path).structure.layers]
    assert any(size > 1 for layer in groups for size, _ in layer)


@pytest.mark.parametrize("given", [["--opset", "17"], ["--precision", "fp16"], ["--precision", "bf16"]])
def test_where_there_is_no_attention_operator_heads_are_computed_one_by_one(checkpoint, given):
    operators, opset, path = exported(checkpoint, "--target", "cpu", *given)
    assert "Attention" not in operators
    assert opset == 17
    metadata = read_metadata(path)
    assert all(size == 1 for layer in metadata.structure.layers for size, _ in layer.groups)
    assert "tuned" not in metadata.details


@pytest.mark.parametrize("target", ["generic", "sm89"])
def test_other_targets_keep_to_the_oldest_opset(checkpoint, target):
    operators, opset, _ = exported(checkpoint, "--target", target)
    assert "Attention" not in operators
    assert opset == 17


def test_the_dense_baseline_is_emitted_by_the_same_rules(checkpoint):
    operators, opset, path = exported(checkpoint, "--target", "cpu", "--dense")
    assert "Attention" in operators
    assert opset == 23
    assert "tuned" not in read_metadata(path).details


@pytest.mark.parametrize("given", [["--target", "cpu"], ["--target", "cpu", "--threads", "1"], ["--target", "sm89"]])
def test_the_same_inputs_give_the_same_file_byte_for_byte(checkpoint, given):
    first, second = (exported(checkpoint, *given)[2].read_bytes() for _ in range(2))
    assert first == second


def test_inspect_shows_the_groups_of_the_target(checkpoint):
    outcome = slimc("inspect", checkpoint, "--target", "cpu", "--threads", "2", "--json")
    assert outcome.code == 0, outcome.stderr
    groups = [layer["groups"] for layer in json.loads(outcome.stdout)["layers"]]
    assert any(group["heads"] > 1 for layer in groups for group in layer)


@pytest.mark.parametrize("command", ["export", "inspect"])
def test_a_tuning_that_is_none_is_one_line(command, checkpoint, tmp_path):
    outcome = slimc(command, checkpoint, "--target", "cpu", "--tuning", checkpoint)
    assert (outcome.code, outcome.stdout, outcome.stderr.count("\n")) == (2, "", 1)
    assert "is no file that slimc tune wrote" in outcome.stderr
    assert not (tmp_path / "ckpt.onnx").exists()


def test_the_generic_target_is_what_a_target_is_by_default():
    assert find_target("generic") == Target("generic") == CompileOptions().target
    assert Target("generic").max_heads == 1


@pytest.mark.parametrize("form", ["--dense", "--masked"])
def test_baselines_take_the_options_of_the_model_that_they_are_compared_with(checkpoint, tmp_path, form):
    out = tmp_path / "m.onnx"
    assert slimc("export", checkpoint, "-o", out, "--target", "cpu", "--threads", "1", form, "--quiet").code == 0
    assert read_metadata(out).target == "cpu"
