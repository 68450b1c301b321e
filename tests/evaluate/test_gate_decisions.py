from dataclasses import replace

import numpy as np
import pytest

from slimc.compiler.adaptive import limiting_passes
from slimc.compiler.limits import Limits, exact_images, graph_decisions, limits_of
from slimc.compiler.pipeline import compile_model, passes_for
from slimc.emit.file import write_model
from slimc.emit.model import emit
from slimc.errors import MismatchError, ModelFileError
from slimc.evaluate.gate_decisions import compare_decided
from slimc.files.reference import Reference, read_reference, write_reference
from slimc.ir.interpret.gates import decide
from slimc.ir.interpret.model import interpret, run_block, start
from slimc.ir.interpret.readout import classify
from slimc.targets.target import find_target
from tests.gated import VECTORS, images_for, observe, random_adaptive, vector

CPU = find_target("cpu")


@pytest.fixture(scope="module")
def released():
    return vector(VECTORS[1])


def compiled(released, directory, limits: Limits | None = None, *, conditional: bool = False):
    """The path of a model, and the reference for it."""
    first = limiting_passes(limits) if limits else ()
    model = compile_model(released.searched.masked, (*first, *passes_for(CPU)))
    path = directory / "m.onnx"
    write_model(emit(model, CPU, conditional=conditional), path)
    _, usage = observe(released.searched, released.images)
    exact = np.ones(4, bool) if limits is None else exact_images(usage, released.searched.masked, limits)
    decisions = graph_decisions(usage, released.searched.masked, limits)
    return path, Reference(
        released.images, {"logits": released.io["logits"]}, {"exact": exact.tolist()}, decisions=decisions
    )


@pytest.mark.parametrize("conditional", [False, True])
def test_a_model_that_decides_alike_is_exact_on_every_image(released, tmp_path, conditional):
    path, reference = compiled(released, tmp_path, conditional=conditional)
    found, exactness = compare_decided(path, reference, 1e-4)
    assert found.passed
    assert exactness is not None
    assert (exactness.exact, exactness.equal, exactness.images) == (4, 4, 4)
    assert (exactness.agreement, exactness.worst_other_over_spread) == (1.0, None)


def test_tokens_beyond_the_capacity_of_a_block_that_an_image_does_not_run_are_not_judged(tmp_path):
    searched = random_adaptive(2)
    images = images_for(searched, 12)
    logits, usage = observe(searched, images)
    limits = limits_of(usage, searched.masked, 1.0)
    used, capacity = usage.blocks[2], limits.capacities[2]
    assert ((used.tokens[:, 1:].sum(1) > capacity) & ~used.runs).sum() == 3
    model = compile_model(searched.masked, (*limiting_passes(limits), *passes_for(CPU)))
    write_model(emit(model, CPU), tmp_path / "m.onnx")
    decisions = graph_decisions(usage, searched.masked, limits)
    reference = Reference(images, {"logits": logits}, {"exact": [True] * 12}, decisions=decisions)
    found, exactness = compare_decided(tmp_path / "m.onnx", reference, 1e-4)
    assert found.passed
    assert exactness is not None
    assert (exactness.exact, exactness.equal, exactness.agreement) == (12, 12, 1.0)


def test_images_beyond_the_limits_are_reported_and_not_judged(released, tmp_path):
    _, usage = observe(released.searched, released.images)
    limits = limits_of(usage, released.searched.masked, 0.5)
    path, reference = compiled(released, tmp_path, limits, conditional=True)
    found, exactness = compare_decided(path, reference, 1e-4)
    assert exactness is not None
    assert 0 < exactness.exact == sum(reference.facts["exact"]) < 4
    assert found.passed
    assert found.inputs == exactness.exact
    assert exactness.worst_other_over_spread is not None
    assert exactness.worst_other_over_spread > 1e-3


@pytest.mark.parametrize("quantile", [None, 1.0])
def test_a_close_decision_on_the_other_side_is_given_and_the_logits_then_judged(
    released, tmp_path, quantile, monkeypatch
):
    """Turns one token over in the reference, and expects the logits of a network that decides so."""
    monkeypatch.setattr("slimc.evaluate.gate_decisions.MIN_AGREEMENT", {"fp32": 0.99})
    _, usage = observe(released.searched, released.images)
    limits = None if quantile is None else limits_of(usage, released.searched.masked, quantile)
    path, reference = compiled(released, tmp_path, limits)
    tokens = reference.decisions["blocks.5.tokens"].copy()
    image = int(np.flatnonzero(usage.blocks[5].attention)[0])
    patch = int(np.flatnonzero(tokens[image, 1:])[0]) + 1
    tokens[image, patch] = False
    turned = replace(reference, decisions={**reference.decisions, "blocks.5.tokens": tokens})
    own, exactness = compare_decided(path, turned, 1e-4)
    assert exactness is not None
    assert (exactness.exact, exactness.equal) == (4, 3)
    # The turned decision changes the logits, so those of the released code no longer fit, nor should they.
    assert not own.passed
    assert own.worst_input == image
    expected = reference.logits.copy()
    expected[image] = without_token(released, image, patch)
    assert compare_decided(path, replace(turned, outputs={"logits": expected}), 1e-4)[0].passed


def without_token(released, image: int, patch: int):
    """Logits of `image` when block 5 does not use `patch`: a threshold cannot say so, the interpreter can."""
    model = released.searched.masked
    x = start(model, released.images[image : image + 1].astype(np.float64)).rows
    for block in model.blocks:
        decided = decide(block.gates, x, 1)
        if block.name == "blocks.5":
            tokens = decided.tokens.copy()
            tokens[:, patch] = 0.0
            decided = replace(decided, tokens=tokens)
        x = run_block(block, x, None, decided)
    return classify(model.classifier, x)[0]


def test_a_model_that_decides_otherwise_is_refused(released, tmp_path):
    path, reference = compiled(released, tmp_path)
    other = {name: ~decided for name, decided in reference.decisions.items()}
    with pytest.raises(MismatchError, match=r"decides 0\.00% of what the reference decides alike"):
        compare_decided(path, replace(reference, decisions=other), 1e-4)


def test_a_reference_without_exact_images_or_of_another_model_is_refused(released, tmp_path):
    path, reference = compiled(released, tmp_path)
    with pytest.raises(MismatchError, match="none of 4 images is within its limits"):
        compare_decided(path, replace(reference, facts={"exact": [False] * 4}), 1e-4)
    other = {**reference.decisions, "blocks.1.decided": np.ones((4, 2), bool)}
    with pytest.raises(ModelFileError, match="belongs to another model"):
        compare_decided(path, replace(reference, decisions=other), 1e-4)


def test_decisions_survive_the_file(released, tmp_path):
    _, reference = compiled(released, tmp_path)
    write_reference(tmp_path / "r.npz", reference)
    read = read_reference(tmp_path / "r.npz")
    assert read.decisions.keys() == reference.decisions.keys()
    assert all(np.array_equal(read.decisions[name], reference.decisions[name]) for name in read.decisions)
    write_reference(tmp_path / "broken.npz", replace(reference, facts={}))
    with pytest.raises(ModelFileError, match="decisions without exact inputs"):
        read_reference(tmp_path / "broken.npz")


def test_the_interpreter_agrees_with_the_turned_network(released):
    """Guards `without_token`: with a token that is off anyway it is the interpreter's own answer."""
    _, usage = observe(released.searched, released.images)
    off = int(np.flatnonzero(~usage.blocks[5].tokens[0])[0])
    expected = interpret(released.searched.masked, released.images[:1])[0]
    np.testing.assert_allclose(without_token(released, 0, off), expected, rtol=0, atol=1e-12)
