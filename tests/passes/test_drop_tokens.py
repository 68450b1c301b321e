from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from slimc.errors import PassError
from slimc.ir import Attention, Model, block_rows, to_float64
from slimc.ir.interpret.model import trace
from slimc.ir.validate import validate
from slimc.passes.drop_tokens import DropUnselectedTokens
from tests.selecting import images_for, random_searched, searched_models, small_config


def masked(**options) -> Model:
    return to_float64(random_searched(small_config(**options)).masked)


def test_rows_leave_where_they_were_hidden():
    model = masked(keep=(6, 3))
    assert [rows.entering for rows in block_rows(model)] == [13, 13, 13]
    assert [rows.entering for rows in block_rows(DropUnselectedTokens()(model))] == [13, 7, 4]


@settings(max_examples=15, deadline=None)
@given(searched_models())
def test_the_network_means_the_same_and_keeps_the_same(searched):
    model, images = to_float64(searched.masked), images_for(searched)
    slim = DropUnselectedTokens()(model)
    validate(slim)
    before, after = trace(model, images), trace(slim, images)
    np.testing.assert_allclose(after.logits, before.logits, rtol=0, atol=1e-9)
    for kept, expected in zip(after.kept, before.kept, strict=True):
        np.testing.assert_array_equal(kept, expected)


def test_input_and_output_are_untouched_and_a_second_run_does_nothing():
    model = masked()
    slim = DropUnselectedTokens()(model)
    assert (slim.image, slim.classes, slim.embedding) == (model.image, model.classes, model.embedding)
    assert DropUnselectedTokens()(slim) is slim


def test_a_network_without_selections_stays_itself():
    dense = random_searched(small_config()).dense
    assert DropUnselectedTokens()(dense) is dense


@pytest.mark.parametrize("drop", [True, False])
def test_a_selection_of_all_rows_goes_with_its_scorer(drop):
    model = masked(keep=(6, 3))
    blocks = list(model.blocks)
    for i, keep in ((1, 12), (2, 40)):
        select = blocks[i].select
        assert select is not None
        blocks[i] = replace(blocks[i], select=replace(select, keep=keep, drop=drop))
    model = replace(model, blocks=tuple(blocks))
    slim = DropUnselectedTokens()(model)
    assert all(block.select is None for block in slim.blocks)
    images = np.random.default_rng(0).standard_normal((1, 3, *model.image))
    np.testing.assert_allclose(trace(slim, images).logits, trace(model, images).logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize("field", ["live", "rows", "token_mask"])
def test_a_position_after_a_hiding_selection_is_refused(field):
    model = masked()
    block = model.blocks[2]
    attention = block.attention
    assert isinstance(attention, Attention)
    if field == "live":
        block = replace(block, live=np.arange(3))
    else:
        rows, mask = (np.arange(3), None) if field == "rows" else (None, np.ones(13))
        block = replace(block, attention=replace(attention, rows=rows, token_mask=mask))
    with pytest.raises(PassError, match=r"blocks\.2 counts rows after a selection"):
        DropUnselectedTokens()(replace(model, blocks=(*model.blocks[:2], block)))
