"""ONNX Runtime behind the protocol: it runs, it times, and it says in one line what is wrong with a file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import slimc
from slimc.backends import ort
from slimc.backends.base import TensorSpec, run_images
from slimc.errors import MissingError, ModelFileError
from tests.artefacts import VECTORS

WEIGHT = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
IMAGES = np.random.default_rng(1).standard_normal((5, 3, 2, 2)).astype(np.float32)


def linear_model(path: Path, batch: int | str = 2, size: int = 2) -> Path:
    """A classifier of one linear layer: images [batch, 3, size, size] to logits [batch, 5]."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def test_it_runs_and_describes_itself(tmp_path):
    session = ort.load(linear_model(tmp_path / "m.onnx"), threads=1)
    assert session.inputs == (TensorSpec("images", (2, 3, 2, 2), "float32"),)
    assert session.outputs == (TensorSpec("logits", (2, 5), "float32"),)
    assert session.backend.endswith(" cpu")
    logits = session.run({"images": IMAGES[:2]})["logits"]
    np.testing.assert_allclose(logits, IMAGES[:2].reshape(2, 12) @ WEIGHT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_any_number_of_images_runs_in_batches_of_the_model(tmp_path, batch):
    session = ort.load(linear_model(tmp_path / "m.onnx", batch=batch))
    logits = run_images(session, IMAGES, "m.onnx")
    np.testing.assert_allclose(logits, IMAGES.reshape(5, 12) @ WEIGHT, rtol=1e-5, atol=1e-5)
    assert run_images(session, IMAGES[:0], "m.onnx").shape == (0, 5)


def test_images_of_another_model_are_refused(tmp_path):
    session = ort.load(linear_model(tmp_path / "m.onnx"))
    with pytest.raises(ModelFileError, match=r"takes images \[3, 2, 2\].*given \[3, 4, 4\]"):
        run_images(session, np.zeros((1, 3, 4, 4), np.float32), "m.onnx")


def test_a_timer_runs_and_measures(tmp_path):
    timer = ort.load(linear_model(tmp_path / "m.onnx")).timer({"images": IMAGES[:2]})
    timing = timer()
    assert 0 < timing.latency < 5
    assert timing.enqueue is None


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    with pytest.raises(ModelFileError, match="no such ONNX model"):
        ort.load(tmp_path / "none.onnx")
    damaged = tmp_path / "damaged.onnx"
    whole = linear_model(tmp_path / "m.onnx").read_bytes()
    for content in (b"", b"not a model", whole[: len(whole) // 2]):
        damaged.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"damaged\.onnx: ONNX Runtime cannot load it") as caught:
            ort.load(damaged)
        assert "\n" not in str(caught.value)


def test_a_model_with_a_dynamic_batch_is_not_ours(tmp_path):
    with pytest.raises(ModelFileError, match="images has the dynamic shape"):
        ort.load(linear_model(tmp_path / "m.onnx", batch="batch"))


def test_a_provider_that_is_not_here_says_what_to_install(tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has the CUDA provider")
    with pytest.raises(MissingError, match=r"pip install 'slimc\[gpu\]'"):
        ort.load(linear_model(tmp_path / "m.onnx"), provider="cuda")


@pytest.mark.parametrize(
    ("opset", "version", "words"),
    [
        (
            23,
            "1.22.1",
            "opset 23 needs ONNX Runtime 1.23.1 or newer, and here is 1.22.1: pip install -U onnxruntime, or",
        ),
        (23, "1.23.0", "or export it with --opset 17"),
        (17, "1.11.1", "opset 17 needs ONNX Runtime 1.12 or newer"),
        (23, "1.23.1", ""),
        (17, "1.15.1", ""),
        (23, "1.32.0+cu13", ""),
    ],
)
def test_a_runtime_that_is_too_old_says_what_serves(opset, version, words, tmp_path):
    path = tmp_path / "m.onnx"
    slimc.export(VECTORS["channel"], path, target="cpu", opset=opset, verify=False)
    found = ort.too_old(path, version)
    assert words in found
    assert bool(words) == bool(found)


def test_a_refusal_is_told_without_source_positions():
    said = (
        "[ONNXRuntimeError] : 1 : FAIL : failed:/onnxruntime_src/onnxruntime/core/graph/model.cc:149 onnxruntime::Model::"
        "Model(onnx::ModelProto&&, const PathString&) Unsupported model IR version: 11, max supported IR version: 10"
    )
    told = ort.refusal(RuntimeError(said))
    assert told.endswith("FAIL : failed:Unsupported model IR version: 11, max supported IR version: 10")
