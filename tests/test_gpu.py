"""All that only a GPU can show: engines that run. One command there: ``pytest -m gpu``."""

from pathlib import Path

import numpy as np
import pytest

from slimc.backends import ort
from slimc.backends.base import run_images
from slimc.backends.choose import open_session
from slimc.backends.cuda import gpu_missing, open_device
from slimc.compiler.engine import EngineOptions, build_engine
from slimc.compiler.verify import Against, verify_artefact
from slimc.emit.precision import TOLERANCE, Precision
from slimc.errors import MissingError, ModelFileError
from slimc.evaluate.latency import Subject, measure
from slimc.evaluate.logits import compare
from slimc.files.reference import read_reference, reference_path
from tests.artefacts import VECTORS, exported, full_size

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(gpu_missing() is not None, reason=str(gpu_missing()))]
LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def built(model: Path, backend: str, precision: Precision, *, fused_attention: bool = True) -> Path:
    """An engine for this machine's GPU, compared with the reference on the way; skips where the library is missing."""
    module = pytest.importorskip(LIBRARIES[backend])
    if not hasattr(module, "__version__"):
        pytest.skip(f"{backend} is not installed")
    if open_device().capability < (8, 0) and precision != "fp16":
        pytest.skip("GPUs before SM80 have no bfloat16, and TensorRT-RTX no float32 products for them")
    engine = model.with_name(f"{model.stem}-{backend}-{precision}.engine")
    options = EngineOptions(
        backend, (), precision, fused_attention=fused_attention, verify=reference_path(model).is_file()
    )
    report = build_engine(model, engine, options)
    if reference_path(model).is_file():
        assert report.comparison is not None, report.unchecked
        assert report.comparison.passed
    return engine


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("backend", LIBRARIES)
def test_every_vector_computes_what_pytorch_does(backend, vector, precision, tmp_path):
    engine = built(exported(vector, tmp_path, batch_size=2), backend, precision)
    verdict = verify_artefact(engine, Against())
    assert verdict.passed
    assert verdict.comparison is not None
    assert verdict.comparison.clear_agreement == 1.0


@pytest.mark.parametrize("backend", LIBRARIES)
def test_attention_that_is_not_fused_computes_the_same(backend, tmp_path):
    built(exported("channel", tmp_path), backend, "fp16", fused_attention=False)


@pytest.mark.parametrize("backend", LIBRARIES)
def test_the_inspector_or_the_log_tells_of_fused_attention(backend, tmp_path):
    model = exported("channel", tmp_path)
    engine = built(model, backend, "fp16")
    from slimc.backends.engine_file import read_engine

    _, facts = read_engine(engine)
    assert len(facts.kernels) > 0
    assert all(block.fused == block.attentions for block in facts.blocks)


@pytest.mark.parametrize("backend", LIBRARIES)
def test_slim_is_timed_against_dense_without_transfers(backend, tmp_path):
    names = {variant: full_size("deit-s", variant, tmp_path) for variant in ("dense", "slim")}
    engines = {variant: built(path, backend, "fp16") for variant, path in names.items()}
    found = measure([Subject(variant, open_session(engine)) for variant, engine in engines.items()], 3.0)
    for measurement in found:
        assert measurement.enqueue is not None
        assert 0 < measurement.median < 0.1


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_the_execution_providers_of_onnx_runtime_compute_the_same(provider, tmp_path):
    path = exported("channel", tmp_path)
    reference = read_reference(reference_path(path))
    try:
        session = ort.load(path, provider=provider)
    except MissingError as error:
        pytest.skip(str(error))
    # The TensorRT provider rounds the operands of products to 10 bits (TF32), as many as float16 has.
    tolerance = TOLERANCE["fp32" if provider == "cuda" else "fp16"]
    found = compare(run_images(session, reference.images, path.name), reference.logits, tolerance)
    assert found.passed
    assert session.timer({"images": np.zeros((1, 3, 56, 56), np.float32)})().latency > 0


def test_an_engine_for_another_gpu_is_refused(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from slimc.backends import cuda, tensorrt_rtx

    here = cuda.open_device().target
    other = next(target for target in tensorrt_rtx.targets_known() if target != here)
    engine = tmp_path / "other.engine"
    report = build_engine(exported("channel", tmp_path), engine, EngineOptions("tensorrt-rtx", (other,), "fp16"))
    assert report.unchecked == f"this GPU is {here}"
    with pytest.raises(ModelFileError, match=f"built for {other}, here is {here}"):
        open_session(engine)
