import numpy as np
from hypothesis import given, settings

from slimc.ir import to_float64
from slimc.ir.interpret.model import trace
from slimc.ir.validate import validate
from slimc.passes.fold_scores import FoldScores
from tests.selecting import images_for, random_searched, searched_models, small_config


def test_the_last_layer_has_one_output_and_no_bias():
    model = FoldScores()(random_searched(small_config()).masked)
    last = [block.select.scorer.layers[-1] for block in model.blocks if block.select is not None]
    assert [layer.weight.shape for layer in last] == [(1, 4), (1, 4)]
    assert all(layer.bias is None for layer in last)


@settings(max_examples=15, deadline=None)
@given(searched_models())
def test_the_same_tokens_are_kept(searched):
    model, images = to_float64(searched.masked), images_for(searched)
    folded = FoldScores()(model)
    validate(folded)
    before, after = trace(model, images), trace(folded, images)
    np.testing.assert_allclose(after.logits, before.logits, rtol=0, atol=1e-9)
    for kept, expected in zip(after.kept, before.kept, strict=True):
        np.testing.assert_array_equal(kept, expected)


def test_a_second_run_does_nothing():
    model = FoldScores()(random_searched(small_config()).masked)
    assert FoldScores()(model) is model
    dense = random_searched(small_config()).dense
    assert FoldScores()(dense) is dense
