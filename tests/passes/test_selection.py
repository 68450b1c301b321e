"""What passes that know nothing of scores do around a selection."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from slimc.compiler.pipeline import check_passes, compile_model, passes_for
from slimc.ir import Attention, Constant, Mlp, Model, block_rows, to_float64
from slimc.ir.interpret.model import interpret
from slimc.ir.validate import validate
from slimc.passes.drop_tokens import DropUnselectedTokens
from slimc.passes.fold_biases import FoldBiases
from slimc.passes.fold_constants import FoldConstants
from slimc.passes.fold_scales import FoldScales
from slimc.passes.order_tokens import OrderTokens
from slimc.passes.remove_dead_tokens import RemoveDeadTokens
from slimc.targets.target import find_target
from tests.selecting import images_for, random_searched, searched_models, small_config


def dropping(**options) -> Model:
    return DropUnselectedTokens()(to_float64(random_searched(small_config(**options)).masked))


def same(model: Model, rewritten: Model) -> None:
    validate(rewritten)
    images = np.random.default_rng(0).standard_normal((2, 3, *model.image))
    np.testing.assert_allclose(interpret(rewritten, images), interpret(model, images), rtol=0, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(searched_models())
def test_the_whole_pipeline_is_exact(searched):
    check_passes(searched.masked, passes_for(find_target("cpu")), images_for(searched, 1))


def test_a_selection_needs_every_row_and_the_last_block_computes_what_the_head_reads():
    model = dropping(keep=(6, 3))
    slim = RemoveDeadTokens()(model)
    assert [(rows.before, rows.entering, rows.leaving) for rows in block_rows(slim)] == [
        (13, 13, 13),
        (13, 7, 7),
        (7, 4, 1),
    ]
    same(model, slim)


def test_an_auxiliary_head_reads_every_patch():
    model = dropping(lvvit=True)
    assert RemoveDeadTokens()(model) is model


def test_rows_without_a_reader_go_after_the_last_selection_even_without_attention():
    model = dropping(keep=(6, 3), depth=4)
    last = replace(model.blocks[3], attention=None)
    model = replace(model, blocks=(*model.blocks[:3], last))
    slim = RemoveDeadTokens()(model)
    assert [rows.leaving for rows in block_rows(slim)] == [13, 7, 1, 1]
    same(model, slim)


def test_lvvit_folds_its_residual_scale_and_has_no_qkv_bias_to_fold():
    model = dropping(lvvit=True)
    folded = FoldBiases()(FoldScales()(model))
    same(model, folded)
    for block in folded.blocks:
        assert isinstance(block.attention, Attention)
        assert isinstance(block.mlp, Mlp)
        assert block.attention.residual_scale == block.mlp.residual_scale == 1.0
        assert block.attention.output_bias is not None
    assert folded.embedding.stem is model.embedding.stem
    assert folded.embedding.patch.bias is None


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_constant_does_not_pass_a_selection_whose_scorer_would_see_it(place):
    model = dropping(keep=(6, 3))
    vector = np.random.default_rng(1).standard_normal(model.dim)
    blocks = list(model.blocks)
    blocks[place] = replace(blocks[place], attention=Constant(vector), mlp=None)
    model = replace(model, blocks=tuple(blocks))
    folded = FoldConstants()(model)
    same(model, folded)
    assert isinstance(folded.blocks[place].attention, Constant) == (place > 0)
    assert FoldConstants()(folded) is folded


def test_selected_rows_are_not_ordered():
    model = RemoveDeadTokens()(dropping())
    assert OrderTokens()(model) is model


def test_a_compiled_model_selects_as_often_as_it_must():
    searched = random_searched(small_config(keep=(6, 3)))
    compiled = compile_model(searched.masked, passes_for(find_target("sm89")))
    assert [None if b.select is None else b.select.keep for b in compiled.blocks] == [None, 6, 3]
