from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimc.ir import Convolution, Model, to_float64
from slimc.ir.interpret.model import interpret
from slimc.ir.validate import validate
from slimc.passes.fold_batch_norm import FoldBatchNorm
from tests.selecting import images_for, random_searched, small_config


def convolutions(model: Model) -> list[Convolution]:
    return [stage for stage in model.embedding.stem if isinstance(stage, Convolution)]


def test_no_batch_norm_is_left_and_shapes_stay():
    model = random_searched(small_config(lvvit=True)).masked
    folded = FoldBatchNorm()(model)
    validate(folded)
    assert [c.norm for c in convolutions(folded)] == [None] * 3
    assert [c.weight.shape for c in convolutions(folded)] == [c.weight.shape for c in convolutions(model)]
    assert [c.bias.shape for c in convolutions(folded) if c.bias is not None] == [(6,), (5,), (4,)]
    assert {c.weight.dtype for c in convolutions(folded)} == {np.dtype(np.float32)}


@given(st.integers(0, 10_000))
def test_the_network_means_the_same(seed):
    searched = random_searched(small_config(lvvit=True, depth=1, pruning_loc=(0,), keep=(12,)), seed)
    model, images = to_float64(searched.masked), images_for(searched, 1)
    np.testing.assert_allclose(interpret(FoldBatchNorm()(model), images), interpret(model, images), rtol=0, atol=1e-9)


def test_a_bias_of_the_convolution_is_carried():
    searched = random_searched(small_config(lvvit=True, depth=1, pruning_loc=(0,), keep=(12,)))
    model, images = to_float64(searched.masked), images_for(searched, 1)
    stem = tuple(replace(c, bias=np.linspace(-1, 1, len(c.weight))) for c in convolutions(model))
    model = replace(model, embedding=replace(model.embedding, stem=stem))
    np.testing.assert_allclose(interpret(FoldBatchNorm()(model), images), interpret(model, images), rtol=0, atol=1e-9)


@pytest.mark.parametrize("lvvit", [True, False])
def test_nothing_to_do(lvvit):
    model = FoldBatchNorm()(random_searched(small_config(lvvit=lvvit)).masked)
    assert FoldBatchNorm()(model) is model
