"""Verification passes what is right, fails what is not, and refuses what does not belong together."""

import numpy as np
import onnx_ir as oir
import pytest
from PIL import Image

from slimc.compiler.export import export_network
from slimc.compiler.load import load_network
from slimc.compiler.options import CompileOptions
from slimc.compiler.verify import Against, verify_artefact
from slimc.errors import ModelFileError, OptionError
from slimc.files.reference import Reference, read_reference, reference_path, write_reference
from tests.artefacts import VECTORS, exported


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return exported("channel", tmp_path_factory.mktemp("model"), target="generic")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    path = tmp_path_factory.mktemp("dense") / "dense.onnx"
    export_network(load_network(VECTORS["channel"]), path, CompileOptions(variant="dense"))
    return path


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_the_reference_beside_the_model_is_found_and_held(model):
    verdict = verify_artefact(model, Against(), threads=1)
    assert verdict.passed
    assert verdict.comparison is not None
    assert verdict.comparison.inputs == 4
    assert verdict.comparison.tolerance == 1e-4
    assert verdict.backend.startswith("onnxruntime ")


def test_a_changed_weight_fails(model, tmp_path):
    content = oir.load(model)
    weight = content.graph.initializers["blocks.2.mlp.fc2.weight"]
    assert weight.const_value is not None
    weight.const_value = oir.tensor(weight.const_value.numpy() * np.float32(1.01), name=weight.name)
    changed = tmp_path / "changed.onnx"
    oir.save(content, changed)
    verdict = verify_artefact(changed, Against(reference_path(model)))
    assert not verdict.passed
    assert verdict.comparison is not None
    assert verify_artefact(changed, Against(reference_path(model)), tolerance=10.0).passed


def test_nan_fails_with_its_reason(model, tmp_path):
    content = oir.load(model)
    weight = content.graph.initializers["blocks.2.mlp.fc2.weight"]
    assert weight.const_value is not None
    weight.const_value = oir.tensor(weight.const_value.numpy() * np.float32("nan"), name=weight.name)
    broken = tmp_path / "broken.onnx"
    oir.save(content, broken)
    verdict = verify_artefact(broken, Against(reference_path(model)))
    assert not verdict.passed
    assert "NaN" in verdict.failure


def test_a_reference_without_inputs_fails(model, tmp_path):
    right = read_reference(reference_path(model))
    empty = tmp_path / "empty.npz"
    write_reference(empty, Reference(right.images[:0], {"logits": right.logits[:0]}, right.facts))
    verdict = verify_artefact(model, Against(empty))
    assert not verdict.passed
    assert "nothing was compared" in verdict.failure


def test_the_checkpoint_and_the_float32_model_answer_for_new_images(model, pictures):
    for source in (VECTORS["channel"], model):
        verdict = verify_artefact(model, Against(source, pictures))
        assert verdict.passed
        assert verdict.comparison is not None
        assert verdict.comparison.inputs == 7
    with pytest.raises(OptionError, match="--data: needs --against"):
        verify_artefact(model, Against(None, pictures))


def test_what_belongs_to_another_model_is_refused(model, dense, tmp_path):
    with pytest.raises(ModelFileError, match="of another checkpoint"):
        verify_artefact(model, Against(VECTORS["heads"]))
    with pytest.raises(ModelFileError, match="of the dense network"):
        verify_artefact(model, Against(reference_path(dense)))
    with pytest.raises(ModelFileError, match="of the slim network"):
        verify_artefact(dense, Against(model))
    assert verify_artefact(dense, Against(VECTORS["channel"])).passed
    with pytest.raises(ModelFileError, match="no such reference"):
        verify_artefact(model, Against(tmp_path / "none.npz"))


def test_what_is_no_artefact_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match=r"ends in \.onnx or \.engine"):
        verify_artefact(tmp_path / "model.pt", Against())
    (tmp_path / "garbage.onnx").write_bytes(b"garbage")
    with pytest.raises(ModelFileError, match=r"not an ONNX model|no slimc metadata"):
        verify_artefact(tmp_path / "garbage.onnx", Against())


def test_back_ends_and_threads_that_there_are_not(model):
    with pytest.raises(OptionError, match="'abacus' is unknown; expected auto, onnxruntime"):
        verify_artefact(model, Against(), backend="abacus")
    with pytest.raises(OptionError, match="--threads: 0"):
        verify_artefact(model, Against(), threads=0)
    with pytest.raises(OptionError, match="tensorrt runs engines; slimc build-engine"):
        verify_artefact(model, Against(), backend="tensorrt")
