"""Selection at its edges: equal scores, NaN, more to keep than there are."""

import numpy as np
import pytest
import torch

from slimc.ir import LayerNorm, Linear, SelectTokens, TokenScorer
from slimc.ir.interpret.tokens import Stream, kept_patches, select_tokens
from tests.selecting import random_searched, small_config


def selection(keep: int, *, drop: bool = True, outputs: int = 1) -> SelectTokens:
    """Scores that rise with the first channel of a row, beyond what the norm leaves of it."""
    dim = 4
    rows = np.eye(dim)[:2]
    scorer = TokenScorer(
        norm=LayerNorm(np.ones(dim), np.zeros(dim), 1e-5),
        local=Linear(rows),
        context=Linear(np.zeros((2, dim))),
        layers=(Linear(np.eye(4)[:1]), Linear(np.array([[1.0], [0.0]])[:outputs])),
    )
    return SelectTokens(scorer, keep, prefix=1, drop=drop)


def stream(first: list[float]) -> Stream:
    rows = np.zeros((1, 1 + len(first), 4))
    rows[0, 1:, 0] = first
    rows[..., 1] = -1.0
    patches = np.arange(-1, len(first))[None]
    return Stream(rows, patches, np.ones_like(patches, bool))


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_highest_scores_are_kept(drop, outputs):
    after = select_tokens(selection(2, drop=drop, outputs=outputs), stream([0.1, 3.0, -2.0, 1.0]))
    assert kept_patches(after).tolist() == [[1, 3]]
    assert after.rows.shape[1] == (3 if drop else 5)


@pytest.mark.parametrize("drop", [True, False])
def test_of_equal_scores_the_earlier_row_is_kept(drop):
    after = select_tokens(selection(3, drop=drop), stream([1.0, 2.0, 1.0, 1.0, 2.0]))
    assert kept_patches(after).tolist() == [[0, 1, 4]]


@pytest.mark.parametrize("drop", [True, False])
def test_a_nan_reaches_every_score_and_the_first_rows_are_kept(drop):
    after = select_tokens(selection(2, drop=drop), stream([1.0, 2.0, 3.0, np.nan]))
    assert kept_patches(after).tolist() == [[0, 1]]


@pytest.mark.parametrize("drop", [True, False])
def test_more_to_keep_than_there_are_keeps_all(drop):
    after = select_tokens(selection(9, drop=drop), stream([1.0, 2.0, 3.0]))
    assert kept_patches(after).tolist() == [[0, 1, 2]]


def test_what_was_hidden_is_not_selected_again_and_counts_in_no_context():
    once = select_tokens(selection(2, drop=False), stream([5.0, 1.0, 4.0, 2.0]))
    twice = select_tokens(selection(3, drop=False), once)
    assert kept_patches(twice).tolist() == [[0, 2]]


def test_the_network_orders_equal_scores_and_nan_in_the_same_way():
    searched = random_searched(small_config(keep=(6, 3)))
    network = searched.pytorch("masked")
    predictor = network.get_submodule("score_predictor.0.out_conv.4")
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.zero_()
    images = torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        kept = searched.trace(network, images).kept
    assert kept[0].tolist() == [[0, 1, 2, 3, 4, 5]]
    images[0, 0, 0, 0] = torch.nan
    with torch.inference_mode():
        found = searched.trace(network, images)
    assert found.logits.isnan().all()
    assert found.kept[0].shape == (1, 6)
