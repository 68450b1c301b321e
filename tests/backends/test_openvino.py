"""OpenVINO behind the protocol: the same logits in float32, near ones in bfloat16, and one line for what it cannot do."""

import numpy as np
import pytest

from slimc.backends.base import run_images
from slimc.errors import ModelFileError
from slimc.files.reference import read_reference, reference_path
from tests.artefacts import exported

pytest.importorskip("openvino")

from slimc.backends import openvino
from slimc.emit.precision import TOLERANCE
from slimc.evaluate.logits import compare


@pytest.mark.parametrize("vector", ["channel", "heads", "patches", "empty", "digits"])
def test_the_slim_networks_run_in_both_precisions(vector, tmp_path):
    path = exported(vector, tmp_path, target="cpu")
    reference = read_reference(reference_path(path))
    exact = run_images(openvino.load(path, precision="f32"), reference.images, path.name)
    assert compare(exact, reference.logits, TOLERANCE["fp32"]).passed
    near = run_images(openvino.load(path, precision="bf16"), reference.images, path.name)
    assert compare(near, reference.logits, TOLERANCE["bf16"]).passed


def test_a_timer_runs_and_measures(tmp_path):
    path = exported("channel", tmp_path, target="cpu")
    session = openvino.load(path)
    timing = session.timer({"images": np.zeros((1, 3, 56, 56), np.float32)})()
    assert 0 < timing.latency < 5
    assert session.backend.startswith("openvino ")


def test_a_file_that_is_no_model_is_one_line(tmp_path):
    (tmp_path / "garbage.onnx").write_bytes(b"garbage")
    with pytest.raises(ModelFileError, match="OpenVINO cannot compile it") as caught:
        openvino.load(tmp_path / "garbage.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelFileError, match="no such ONNX model"):
        openvino.load(tmp_path / "none.onnx")


def test_a_version_that_computes_attention_wrongly_is_refused(tmp_path):
    operator = exported("channel", tmp_path, target="cpu")
    plain = exported("heads", tmp_path, target="generic")
    for version in ("2025.4.1", "2026.1.0-21367-63e31528c62", "2026.2.1"):
        found = openvino.too_old(operator, version)
        assert "need OpenVINO 2026.3 or newer, and here is" in found
        assert "--opset 17" in found
        assert openvino.too_old(plain, version) == ""
    assert openvino.too_old(operator, "2026.3.0") == ""
