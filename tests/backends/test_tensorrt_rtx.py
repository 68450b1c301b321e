"""Real builds: TensorRT-RTX builds ahead of time and needs no GPU for it."""

from pathlib import Path

import pytest

from slimc.backends.fusion import BlockFusion, attention_sites, read_log, summarise
from slimc.errors import ModelFileError, OptionError
from tests.artefacts import VECTORS, exported, full_size, half

pytest.importorskip("tensorrt_rtx", reason="builds engines with TensorRT-RTX")

import onnx_ir as oir

from slimc.backends import tensorrt_rtx
from slimc.backends.tensorrt_common import Plan

AMPERE_AND_NEWER = ("sm80", "sm86", "sm89", "sm120")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def blocks_of(plan: Plan, path: Path) -> tuple[BlockFusion, ...]:
    """What became of every block."""
    return summarise(read_log(plan.log), attention_sites(oir.load(path).graph))


@pytest.mark.parametrize("variant", ["slim", "dense"])
@pytest.mark.parametrize("size", ["deit-t", "deit-s"])
def test_full_size_networks_build_for_every_target(size, variant, directory):
    path = full_size(size, variant, directory)
    plan = tensorrt_rtx.build_plan(path, AMPERE_AND_NEWER, path)
    assert len(plan.data) > path.stat().st_size / 2
    assert [(spec.name, spec.shape, spec.dtype) for spec in (*plan.inputs, *plan.outputs)] == [
        ("images", (1, 3, 224, 224), "float32"),
        ("logits", (1, 1000), "float32"),
    ]
    typed = half(path, directory)
    in_half = tensorrt_rtx.build_plan(typed, ("sm75", *AMPERE_AND_NEWER), typed)
    assert len(in_half.data) > typed.stat().st_size / 2
    assert all(block.fused == block.attentions == 1 for block in blocks_of(in_half, typed))


def test_a_slim_block_takes_nine_kernels_with_one_group_of_heads(directory):
    path = half(full_size("deit-s", "slim", directory), directory)
    blocks = blocks_of(tensorrt_rtx.build_plan(path, ("sm89",), path), path)
    assert len(blocks) == 12
    assert {block.attentions for block in blocks} == {1}
    assert sum(block.kernels for block in blocks) / 12 <= 9


def test_a_slim_block_takes_twelve_kernels_with_two_groups(directory):
    path = half(full_size("deit-s", "slim", directory, many_groups=True), directory)
    blocks = blocks_of(tensorrt_rtx.build_plan(path, ("sm89",), path), path)
    assert all(block.fused == block.attentions for block in blocks)
    two = [block.kernels for block in blocks if block.attentions == 2]
    assert len(two) >= 3
    assert sum(two) / len(two) <= 12


@pytest.mark.parametrize("vector", VECTORS)
def test_every_vector_builds_in_half_with_every_attention_fused(vector, directory):
    path = half(exported(vector, directory), directory)
    blocks = blocks_of(tensorrt_rtx.build_plan(path, ("sm89",), path), path)
    assert sum(block.attentions for block in blocks) >= 3
    assert all(block.fused == block.attentions for block in blocks)


def test_no_target_gives_one_portable_engine(directory):
    path = half(exported("channel", directory), directory)
    assert tensorrt_rtx.build_plan(path, (), path).data != tensorrt_rtx.build_plan(path, ("sm89",), path).data


def test_what_a_target_cannot_compute_is_its_own_message_with_the_node(directory):
    path = exported("channel", directory)
    with pytest.raises(ModelFileError, match=r"given\.onnx: TensorRT-RTX cannot build it: .*FP32 GEMM") as caught:
        tensorrt_rtx.build_plan(path, ("sm75",), directory / "given.onnx")
    assert "patch_embed.proj" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_operator_it_does_not_know_is_named(directory):
    x = oir.val("x", oir.DataType.FLOAT, (4,))
    node = oir.node("NonZero", [x], name="the.node")
    node.outputs[0].name = "y"
    node.outputs[0].dtype, node.outputs[0].shape = oir.DataType.INT64, oir.Shape(("a", "b"))
    graph = oir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 17}, name="bad")
    path = directory / "bad.onnx"
    oir.save(oir.Model(graph, ir_version=8), path)
    with pytest.raises(ModelFileError, match=r"TensorRT-RTX cannot parse it: node the\.node \(NonZero\)"):
        tensorrt_rtx.build_plan(path, ("sm89",), path)


@pytest.mark.parametrize("read", [True, False])
def test_an_input_that_is_silently_ignored_is_an_error(read, directory):
    q, k, v = (oir.val(name, oir.DataType.FLOAT16, (1, 4, 50, 64)) for name in "qkv")
    lengths = oir.val("lengths", oir.DataType.INT64, (1,))
    given = [q, k, v, None, None, None, lengths] if read else [q, k, v]
    node = oir.node("Attention", given, name="the.node")
    node.outputs[0].name = "y"
    node.outputs[0].dtype, node.outputs[0].shape = oir.DataType.FLOAT16, q.shape
    graph = oir.Graph([q, k, v, lengths], node.outputs, nodes=[node], opset_imports={"": 24}, name="ignored")
    path = directory / "ignored.onnx"
    oir.save(oir.Model(graph, ir_version=11), path)
    where = r"of node the\.node \(Attention\)" if read else "which no node reads"
    with pytest.raises(ModelFileError, match=f"ignores the input lengths {where}"):
        tensorrt_rtx.build_plan(path, ("sm89",), path)


def test_a_file_that_is_no_model_is_one_line(directory):
    path = directory / "garbage.onnx"
    path.write_bytes(b"garbage" * 100)
    with pytest.raises(ModelFileError, match="cannot parse it") as caught:
        tensorrt_rtx.build_plan(path, ("sm89",), path)
    assert "\n" not in str(caught.value)


def test_an_unknown_target_names_those_that_are_known(directory):
    with pytest.raises(OptionError, match=r"does not build for sm90; expected sm75.*sm120"):
        tensorrt_rtx.build_plan(directory / "any.onnx", ("sm90",), directory / "any.onnx")


def test_garbage_is_told_from_a_plan_without_a_gpu(directory):
    path = half(exported("channel", directory), directory)
    plan = tensorrt_rtx.build_plan(path, ("sm89",), path)
    from slimc.backends.cuda import gpu_missing

    if gpu_missing() is not None:
        tensorrt_rtx.check_plan(path, plan.data)
    with pytest.raises(ModelFileError, match="no engine that TensorRT-RTX"):
        tensorrt_rtx.check_plan(path, b"garbage" * 100)
