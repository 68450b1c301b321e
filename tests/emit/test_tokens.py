"""Selections in ONNX: the released logits and sets at any batch size, few operations, defined edges."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slimc.backends import ort
from slimc.backends.base import run_images
from slimc.compiler.load import load_network
from slimc.compiler.pipeline import compile_model, passes_for
from slimc.emit.file import write_model
from slimc.emit.model import emit
from slimc.emit.tokens import score_bound
from slimc.ir import FloatArray, Model, SelectTokens, to_float64
from slimc.ir.interpret.model import trace
from slimc.ir.interpret.tokens import score_tokens
from slimc.models.system import Network, Variant
from slimc.targets.count import count
from slimc.targets.target import find_target
from tests.selecting import VECTORS, Vector, images_for, random_searched, searched_models, small_config

CPU = find_target("cpu")


def variant_of(searched: Network, variant: Variant) -> Model:
    if variant == "slim":
        return compile_model(searched.masked, passes_for(CPU))
    return searched.masked if variant == "masked" else searched.dense


def write(model: Model, path: Path, *, batch_size: int = 1, opset: int = 17) -> onnx.ModelProto:
    write_model(emit(model, CPU, batch_size=batch_size, opset=opset), path)
    return onnx.load(path)


def run(model: Model, images: FloatArray, directory: Path, *, batch_size: int = 1, opset: int = 17) -> FloatArray:
    path = directory / "model.onnx"
    write(model, path, batch_size=batch_size, opset=opset)
    return run_images(ort.load(path, threads=1), images, "model")


@pytest.mark.parametrize("batch_size", [1, 4, 8])
@pytest.mark.parametrize("variant", ["slim", "masked"])
@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_the_released_logits(vector: Vector, variant: Variant, batch_size: int, tmp_path: Path):
    model = variant_of(load_network(vector.checkpoint, vector.options), variant)
    logits = run(model, np.concatenate([vector.images] * 2), tmp_path, batch_size=batch_size)
    np.testing.assert_allclose(logits, np.concatenate([vector.logits] * 2), rtol=0, atol=2e-5)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(searched_models(), st.sampled_from(["slim", "masked", "dense"]), st.sampled_from([1, 3]))
def test_random_networks_as_the_interpreter_has_them(tmp_path: Path, searched, variant, batch_size):
    images = images_for(searched, 3)
    model = variant_of(searched, variant)
    expected = trace(searched.dense if variant == "dense" else searched.masked, images)
    np.testing.assert_allclose(run(model, images, tmp_path, batch_size=batch_size), expected.logits, rtol=0, atol=2e-4)


@pytest.mark.parametrize("opset", [18, 20, 23])
@pytest.mark.parametrize("lvvit", [False, True])
def test_other_opsets(lvvit: bool, opset: int, tmp_path: Path):
    searched = random_searched(small_config(lvvit=lvvit))
    images = images_for(searched)
    logits = run(variant_of(searched, "slim"), images, tmp_path, opset=opset)
    np.testing.assert_allclose(logits, trace(searched.masked, images).logits, rtol=0, atol=2e-4)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_few_operations_stand_around_a_selection(batch_size: int, tmp_path: Path):
    model = variant_of(random_searched(small_config()), "slim")
    nodes = write(model, tmp_path / "m.onnx", batch_size=batch_size).graph.node
    kinds = Counter(n.op_type for n in nodes if n.name.startswith("blocks.1.select") and n.op_type != "Constant")
    assert kinds["TopK"] == kinds["Gather"] == kinds["LayerNormalization"] == kinds["MatMul"] == 1
    assert kinds["Gemm"] == 6
    assert kinds["Slice"] == kinds["Concat"] == kinds["Split"] == kinds["Softmax"] == 0
    # Beyond these and the four GELUs (five nodes each), reshapes; in a batch the context and the offset of every image.
    assert kinds["Reshape"] == (2 if batch_size == 1 else 7)
    assert kinds["Add"] == 4 + (0 if batch_size == 1 else 2)


def counted_macs(graph: onnx.GraphProto) -> int:
    """MACs of the Conv, Gemm and MatMul nodes, from the shapes in the file."""
    shapes = {i.name: list(i.dims) for i in graph.initializer}
    for info in (*graph.value_info, *graph.input, *graph.output):
        shapes[info.name] = [axis.dim_value for axis in info.type.tensor_type.shape.dim]
    for node in graph.node:
        if node.op_type == "Constant":
            shapes[node.output[0]] = list(node.attribute[0].t.dims)
    macs = 0
    for node in graph.node:
        if node.op_type in ("Gemm", "MatMul"):
            macs += int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][-1]
        elif node.op_type == "Conv":
            macs += int(np.prod(shapes[node.output[0]])) * int(np.prod(shapes[node.input[1]][1:]))
    return macs


@pytest.mark.parametrize("variant", ["slim", "masked", "dense"])
@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_counts_are_those_of_the_file(vector: Vector, variant: Variant, tmp_path: Path):
    model = variant_of(load_network(vector.checkpoint, vector.options), variant)
    graph = write(model, tmp_path / "m.onnx").graph
    counts = count(model, CPU)
    assert counts.macs == counted_macs(graph)
    assert counts.params == sum(int(np.prod(i.dims)) for i in graph.initializer)


def test_a_slim_network_has_no_row_that_was_dropped(tmp_path: Path):
    model = variant_of(load_network(VECTORS[0].checkpoint, VECTORS[0].options), "slim")
    graph = write(model, tmp_path / "m.onnx").graph
    shapes = {i.name: [axis.dim_value for axis in i.type.tensor_type.shape.dim] for i in graph.value_info}
    assert [shapes[f"blocks.{i}.mlp.fc1"] for i in (2, 3, 6, 9, 11)] == [[n, 192 + 1] for n in (197, 138, 97, 68, 1)]
    scores = [shape for name, shape in shapes.items() if name.startswith("blocks.9.attn") and name.endswith(".scores")]
    assert scores
    assert all(shape[-2:] == [68, 68] for shape in scores)


class TestEdges:
    def kept(self, model: Model, images: FloatArray, directory: Path, *, batch_size: int = 1) -> list[FloatArray]:
        """What the TopK nodes yield, prefix rows first."""
        proto = write(model, directory / "m.onnx", batch_size=batch_size)
        names = [node.output[1] for node in proto.graph.node if node.op_type == "TopK"]
        proto.graph.output.extend(info for info in proto.graph.value_info if info.name in names)
        onnx.save(proto, directory / "k.onnx")
        outputs = ort.load(directory / "k.onnx", threads=1).run({"images": images})
        return [outputs[name] for name in names]

    def test_of_equal_scores_the_earlier_rows_are_kept(self, tmp_path: Path):
        model = variant_of(random_searched(small_config(keep=(6, 3))), "slim")
        blocks = []
        for block in model.blocks:
            if block.select is not None:
                layers = block.select.scorer.layers
                flat = replace(layers[-1], weight=np.zeros_like(layers[-1].weight))
                scorer = replace(block.select.scorer, layers=(*layers[:-1], flat))
                blocks.append(replace(block, select=replace(block.select, scorer=scorer)))
            else:
                blocks.append(block)
        model = replace(model, blocks=tuple(blocks))
        images = np.random.default_rng(0).standard_normal((2, 3, 6, 8), np.float32)
        first, second = self.kept(model, images, tmp_path, batch_size=2)
        assert first.tolist() == [[0, 1, 2, 3, 4, 5, 6]] * 2
        assert second.tolist() == [[0, 1, 2, 3]] * 2
        np.testing.assert_array_equal(trace(model, images).kept[0], first[:, 1:] - 1)

    @pytest.mark.parametrize("variant", ["slim", "masked"])
    def test_a_nan_stays_in_its_image(self, variant: Variant, tmp_path: Path):
        searched = random_searched(small_config(keep=(6, 3)))
        images = images_for(searched, 3)
        clean = run(variant_of(searched, variant), images, tmp_path, batch_size=3)
        images[1, 0, 2, 2] = np.nan
        model = variant_of(searched, variant)
        logits = run(model, images, tmp_path, batch_size=3)
        assert np.isnan(logits[1]).all()
        np.testing.assert_array_equal(logits[[0, 2]], clean[[0, 2]])
        for rows in self.kept(model, images, tmp_path, batch_size=3):
            assert all(len(set(image)) == len(image) and min(image) >= 0 and max(image) < 13 for image in rows.tolist())

    def test_more_to_keep_than_there_are_keeps_all(self, tmp_path: Path):
        searched = random_searched(small_config(keep=(6, 3)))
        blocks = [
            block if block.select is None else replace(block, select=replace(block.select, keep=20, drop=drop))
            for drop, block in zip((True, True, False), searched.masked.blocks, strict=True)
        ]
        model = replace(searched.masked, blocks=tuple(blocks))
        images = images_for(searched)
        expected = trace(searched.dense, images).logits
        np.testing.assert_allclose(run(model, images, tmp_path), expected, rtol=0, atol=2e-4)

    def test_hidden_rows_are_not_selected_again_when_too_few_are_left(self, tmp_path: Path):
        searched = random_searched(small_config(keep=(6, 3)))
        last = searched.masked.blocks[2]
        assert last.select is not None
        wide = replace(last, select=replace(last.select, keep=9))
        model = replace(searched.masked, blocks=(*searched.masked.blocks[:2], wide))
        images = images_for(searched)
        np.testing.assert_allclose(run(model, images, tmp_path), trace(model, images).logits, rtol=0, atol=2e-4)


@given(st.integers(0, 1000), st.floats(0.0, 6.0))
def test_no_score_exceeds_the_bound(seed: int, scale: float):
    model = to_float64(random_searched(small_config(), seed).masked)
    select = model.blocks[1].select
    assert isinstance(select, SelectTokens)
    x = np.random.default_rng(seed).standard_normal((3, 12, model.dim)) * 10.0**scale
    last = select.scorer.layers[-1]
    assert last.bias is not None
    single = replace(last, weight=last.weight[:1] - last.weight[1:], bias=last.bias[:1] - last.bias[1:])
    scorer = replace(select.scorer, layers=(*select.scorer.layers[:-1], single))
    scores = score_tokens(scorer, x, np.ones((3, 12), bool))
    assert np.abs(scores).max() <= min(score_bound(scorer), score_bound(select.scorer))


def test_torch_and_onnx_keep_the_same_patches_in_the_same_order(tmp_path: Path):
    searched = random_searched(small_config(keep=(6, 3)))
    images = images_for(searched, 2)
    with torch.inference_mode():
        kept = searched.trace(searched.pytorch("masked"), torch.from_numpy(images)).kept
    found = TestEdges().kept(variant_of(searched, "slim"), images, tmp_path, batch_size=2)
    np.testing.assert_array_equal(found[0][:, 1:] - 1, kept[0].numpy())
