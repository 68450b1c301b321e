"""How a network that selects is verified: the sets it keeps, and its logits for given sets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from slimc.backends import ort
from slimc.cli.results import export_json
from slimc.compiler.export import export_network, verify_file
from slimc.compiler.load import load_network
from slimc.compiler.options import CompileOptions
from slimc.emit.file import write_model
from slimc.errors import MismatchError, ModelFileError
from slimc.evaluate.compare import compare_with
from slimc.evaluate.kept_patches import Agreement, agree, compare_selected, equal_sets, run_given, run_selected
from slimc.evaluate.logits import compare
from slimc.files.images import seeded_images
from slimc.files.reference import Reference, read_reference, write_reference
from slimc.models.system import Variant
from tests.selecting import VECTORS, Vector

INNER: tuple[Variant, ...] = ("slim", "masked")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[tuple[str, str], Path]:
    """Every vector, slim and masked, in batches of 3: the last batch of 4 images is filled."""
    directory = tmp_path_factory.mktemp("models")
    paths: dict[tuple[str, str], Path] = {}
    for vector in VECTORS:
        for variant in INNER:
            path = directory / f"{vector.name}-{variant}.onnx"
            export_network(
                load_network(vector.checkpoint, vector.options),
                path,
                CompileOptions(variant=variant, batch_size=3),
                verify=False,
            )
            paths[vector.name, variant] = path
    return paths


@pytest.mark.parametrize("variant", INNER)
@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_the_released_sets_are_kept(models, vector: Vector, variant: Variant):
    found = run_selected(models[vector.name, variant], vector.images)
    np.testing.assert_allclose(found.logits, vector.logits, rtol=0, atol=2e-5)
    assert [stage.shape for stage in found.kept] == [(4, 137), (4, 96), (4, 67)]
    for kept, expected in zip(found.kept, vector.kept, strict=True):
        np.testing.assert_array_equal(np.sort(kept, axis=1), expected)


@pytest.mark.parametrize("variant", INNER)
@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_given_the_released_sets_in_any_order_the_logits_are_the_released_ones(models, vector, variant):
    path = models[vector.name, variant]
    logits = run_given(path, vector.images, vector.kept)["logits"]
    np.testing.assert_allclose(logits, vector.logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("variant", INNER)
def test_other_sets_give_other_logits(models, variant):
    vector = VECTORS[0]
    path = models[vector.name, variant]
    kept = [stage[:, ::-1].copy() for stage in vector.kept]
    kept[2] = kept[1][:, :67]
    logits = run_given(path, vector.images, kept)["logits"]
    assert np.abs(logits - vector.logits).max() > 0.01


def reference(vector: Vector) -> Reference:
    return Reference(vector.images, {"logits": vector.logits}, {}, vector.kept)


def test_a_patch_that_changes_places_is_reported_and_its_input_judged_by_the_reference_sets(models):
    vector = VECTORS[0]
    path = models[vector.name, "slim"]
    kept = [stage.copy() for stage in vector.kept]
    gone = np.setdiff1d(kept[1][2], kept[2][2])
    kept[2][2, 0] = gone[0]
    logits = vector.logits.copy()
    logits[2] = run_given(path, vector.images, kept)["logits"][2]
    found, agreement = compare_selected(path, Reference(vector.images, {"logits": logits}, {}, tuple(kept)), 1e-4)
    assert agreement.equal == 3
    assert agreement.stages == pytest.approx((1.0, 1.0, 1 - 1 / (4 * 67)))
    assert found.passed
    unjudged = compare(run_selected(path, vector.images).logits, logits, 1e-4)
    assert not unjudged.passed


def test_too_many_patches_that_differ_are_a_mismatch(models):
    vector = VECTORS[0]
    kept = list(vector.kept)
    kept[1] = np.array([np.setdiff1d(np.arange(196), stage)[:96] for stage in kept[1]])
    wrong = Reference(vector.images, {"logits": vector.logits}, {}, tuple(kept))
    with pytest.raises(MismatchError, match=r"keeps 100.0%, .* of the reference's patches, .* at least 99%"):
        compare_selected(models[vector.name, "slim"], wrong, 1e-4)


def test_a_reference_of_other_counts_belongs_to_another_model(models):
    vector = VECTORS[0]
    wrong = Reference(vector.images, {"logits": vector.logits}, {}, vector.kept[:2])
    with pytest.raises(ModelFileError, match="another model"):
        compare_selected(models[vector.name, "slim"], wrong, 1e-4)


def test_images_of_another_size_are_refused(models):
    with pytest.raises(ModelFileError, match=r"the model takes images \[3, 56, 56\]"):
        run_selected(models[VECTORS[0].name, "slim"], np.zeros((1, 3, 28, 28), np.float32))


def test_a_model_without_selections_is_refused(tmp_path: Path):
    vector = VECTORS[0]
    export_network(
        load_network(vector.checkpoint, vector.options), tmp_path / "d.onnx", CompileOptions(variant="dense")
    )
    with pytest.raises(ModelFileError, match="selects no tokens"):
        run_selected(tmp_path / "d.onnx", vector.images)


def test_agreement_counts_sets_not_order():
    first = np.array([[1, 2, 3], [4, 5, 6]])
    second = np.array([[3, 1, 2], [4, 5, 7]])
    assert agree([first], [second]).stages == pytest.approx((5 / 6,))
    assert equal_sets([first], [second]).tolist() == [True, False]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_export_reports_the_agreement_and_ships_the_sets(vector: Vector, tmp_path: Path):
    report = export_network(
        load_network(vector.checkpoint, vector.options), tmp_path / "m.onnx", CompileOptions(batch_size=4)
    )
    assert isinstance(report.agreement, Agreement)
    assert (report.agreement.equal, report.agreement.inputs) == (4, 4)
    assert export_json(report)["verify"]["choices"]["stages"] == (1.0, 1.0, 1.0)
    assert report.reference is not None
    shipped = read_reference(report.reference)
    assert [stage.shape for stage in shipped.kept] == [(4, 137), (4, 96), (4, 67)]
    assert compare_selected(report.onnx, shipped, 1e-4)[0].passed


def test_the_check_of_an_export_fails_where_other_patches_are_kept(models):
    made = reference(VECTORS[0])
    shifted = replace(made, kept=tuple((stage + 50) % 196 for stage in made.kept))
    with pytest.raises(MismatchError, match=r"^small\.onnx: not written: keeps .* of the reference's patches"):
        verify_file(models[VECTORS[0].name, "slim"], shifted, CompileOptions(), Path("small.onnx"))


def test_a_reference_with_sets_reads_back_and_a_damaged_one_is_refused(tmp_path: Path):
    path = tmp_path / "r.npz"
    write_reference(path, reference(VECTORS[0]))
    back = read_reference(path)
    assert all((a == b).all() for a, b in zip(back.kept, VECTORS[0].kept, strict=True))
    write_reference(path, replace(back, kept=(back.kept[0][:2],)))
    with pytest.raises(ModelFileError, match="not a reference that slimc wrote"):
        read_reference(path)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_half_precision_keeps_nearly_the_same_patches(models, vector: Vector, tmp_path: Path):
    import onnx_ir as oir

    from slimc.emit.precision import TOLERANCE, to_half

    model = oir.load(models[vector.name, "slim"])
    assert to_half(model, "fp16") == ()
    write_model(model, tmp_path / "half.onnx")
    found, agreement = compare_selected(tmp_path / "half.onnx", reference(vector), TOLERANCE["fp16"], precision="fp16")
    assert found.passed
    assert min(agreement.stages) >= 0.98
    assert found.top1_agreement == 1.0


def test_options_are_kept_apart_from_other_systems(tmp_path: Path):
    from slimc.errors import OptionError

    with pytest.raises(OptionError, match="--budget-attn"):
        export_network(load_network(VECTORS[0].checkpoint, {"budget_attn": 0.5}), tmp_path / "m.onnx", CompileOptions())


class TestJudgedWithoutSets:
    """An engine does not tell what it keeps; a model in another format stands in for one here."""

    @staticmethod
    def judge(path: Path, reference: Reference, precision: str = "fp16") -> int:
        """The number of inputs that count."""
        disguised = path.with_suffix(".model")
        disguised.write_bytes(path.read_bytes())
        found, agreement = compare_with(
            disguised, reference, 1e-4, open_model=ort.load, precision=precision, source="engine"
        )
        assert agreement is None
        assert found.passed
        return found.inputs

    @pytest.mark.parametrize(
        ("margins", "precision", "judged"),
        [
            ([1.0, 0.01, 0.004, 0.002], "fp16", 3),
            ([1.0, 0.01, 0.004, 0.002], "bf16", 1),
            ([0.001, 0.002, 0.0015, 0.0], "fp16", 1),
            ([0.001, 0.002, 0.0015, 0.0], "fp32", 3),
        ],
    )
    def test_inputs_in_doubt_do_not_count(self, models, margins, precision, judged):
        vector = VECTORS[0]
        logits = vector.logits.copy()
        doubtful = np.array(margins) < min({"fp32": 1e-4, "fp16": 3e-3, "bf16": 2.4e-2}[precision], max(margins))
        logits[doubtful] += 1.0
        made = replace(reference(vector), outputs={"logits": logits}, facts={"margins": margins})
        assert self.judge(models[vector.name, "slim"], made, precision) == judged

    def test_all_inputs_count_where_nothing_is_known_of_their_margins(self, models):
        assert self.judge(models[VECTORS[0].name, "slim"], reference(VECTORS[0])) == 4

    def test_export_ships_inputs_that_half_precision_decides_alike(self, tmp_path: Path):
        vector = VECTORS[0]
        report = export_network(load_network(vector.checkpoint, vector.options), tmp_path / "m.onnx", CompileOptions())
        assert report.reference is not None
        margins = read_reference(report.reference).facts["margins"]
        assert len(margins) == 4
        searched = load_network(vector.checkpoint, vector.options)
        candidates = torch.from_numpy(seeded_images(12, searched.masked.image, 0))
        with torch.inference_mode():
            everything = searched.trace(searched.pytorch("masked"), candidates).margins
        assert everything is not None
        assert sorted(margins) == pytest.approx(sorted(everything.tolist())[-4:], abs=1e-4)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_margins_are_those_of_the_released_scores(vector: Vector):
    searched = load_network(vector.checkpoint, vector.options)
    with torch.inference_mode():
        margins = searched.trace(searched.pytorch("masked"), torch.from_numpy(vector.images)).margins
    assert margins is not None
    expected = np.full(4, np.inf)
    for scores, kept in zip(vector.scores, vector.kept, strict=True):
        for image, (log_probability, chosen) in enumerate(zip(scores.astype(np.float64), kept, strict=True)):
            there = ~np.isnan(log_probability)
            difference = log_probability - np.log1p(-np.exp(log_probability))
            dropped = np.setdiff1d(np.flatnonzero(there), chosen)
            gap = (difference[chosen].min() - difference[dropped].max()) / difference[there].std(ddof=1)
            expected[image] = min(expected[image], gap)
    np.testing.assert_allclose(margins.numpy(), expected, rtol=0, atol=2e-5)
