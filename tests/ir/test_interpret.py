"""The interpreter defines what the IR means, so it must be right where numbers are large."""

from dataclasses import replace

import numpy as np
import pytest

from slimc import ir
from slimc.ir.interpret.attention import attend
from slimc.ir.interpret.linear import gelu
from slimc.ir.interpret.model import interpret
from tests.networks import Geometry, branches, dense_network, images_for

GEOMETRY = Geometry(1, 2, 3, 6, 4, (2, 2), (2, 2), 1, 3, qkv_bias=True, pre_logits=False, residual_scale=1.0)


def attention(scale: float, ghosts: int) -> ir.Attention:
    whole = branches(dense_network(GEOMETRY, 0).blocks[0])[0]
    heads = tuple(
        replace(head, key=ir.Linear(head.key.weight), value=ir.Linear(head.value.weight)) for head in whole.heads
    )
    return replace(whole, heads=heads, scale=scale, ghosts=ghosts)


@pytest.mark.parametrize("scale", [-1e5, 1e5])
@pytest.mark.parametrize("ghosts", [0, 7])
def test_scores_of_any_size_give_finite_rows(scale, ghosts):
    x = np.random.default_rng(0).standard_normal((2, 5, 6))
    assert np.isfinite(attend(attention(scale, ghosts), x)).all()


@pytest.mark.parametrize("ghosts", [0, 3])
def test_scores_far_below_zero_keep_their_softmax_unless_ghosts_take_it(ghosts):
    """All scores at -1000: without ghosts the weights are equal, beside ghosts they vanish."""
    x = np.random.default_rng(0).standard_normal((1, 5, 6))
    far = attention(1.0, ghosts)
    far = replace(far, norm=ir.LayerNorm(np.zeros(6), np.ones(6), far.norm.eps))  # all normalised rows are ones
    heads = tuple(
        replace(head, query=ir.Linear(0 * head.query.weight, np.array([1.0, 0, 0])), key=ir.Linear(0 * head.key.weight))
        for head in far.heads
    )
    low = tuple(replace(head, key=ir.Linear(np.diag([-1000.0, 0, 0, 0, 0, 0])[:3])) for head in heads)
    branch, flat = attend(replace(far, heads=low), x), attend(replace(far, heads=heads, ghosts=0), x)
    expected = np.broadcast_to(np.asarray(far.output_bias), flat.shape) if ghosts else flat
    np.testing.assert_allclose(branch, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("biased", [False, True])
def test_ghosts_are_rows_whose_mask_is_zero(biased):
    whole = branches(dense_network(GEOMETRY, 0).blocks[0])[0] if biased else attention(0.7, 0)
    x = np.random.default_rng(0).standard_normal((2, 5, 6))
    masked = replace(whole, token_mask=np.array([1.0, 1, 0, 1, 0]))
    rows = replace(whole, rows=np.array([0, 1, 3]), ghosts=2)
    np.testing.assert_allclose(attend(rows, x), attend(masked, x), rtol=0, atol=1e-12)


def test_gelu_is_the_exact_one():
    torch = pytest.importorskip("torch")
    x = np.linspace(-6, 6, 101)
    np.testing.assert_allclose(gelu(x), torch.nn.functional.gelu(torch.from_numpy(x)).numpy(), rtol=0, atol=1e-15)


def test_an_image_does_not_depend_on_the_others_of_its_batch():
    network = dense_network(GEOMETRY, 0)
    images = images_for(network, 3)
    alone = np.concatenate([interpret(network, images[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(interpret(network, images), alone, rtol=0, atol=1e-12)
