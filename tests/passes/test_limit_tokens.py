import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimc import ir
from slimc.errors import PassError
from slimc.ir.interpret.model import interpret, trace
from slimc.ir.validate import validate
from slimc.passes.limit_tokens import LimitTokens
from tests.gated import images_for, random_adaptive


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_the_network_means_the_same_for_images_that_stay_within(seed, tokens_with_mlp):
    searched = random_adaptive(seed, tokens_with_mlp=tokens_with_mlp)
    model, images = ir.to_float64(searched.masked), images_for(searched, 3, seed)
    counts = np.stack([decided.tokens[:, 1:].sum(1) for decided in trace(model, images).decisions])
    needed = tuple(max(1, int(count)) for count in counts.max(1))
    limited = LimitTokens(needed)(model)
    validate(limited)
    np.testing.assert_allclose(interpret(limited, images), interpret(model, images), rtol=0, atol=1e-9)


def test_beyond_the_capacity_the_lowest_scores_go_first():
    searched = random_adaptive(1)
    images = images_for(searched)
    free, tight = (
        trace(model, images).decisions[0].tokens[:, 1:]
        for model in (searched.masked, LimitTokens((4, None, None))(searched.masked))
    )
    assert (free.sum(1) > 4).all()
    assert tight.sum(1).tolist() == [4, 4, 4]
    assert (tight <= free).all()


def test_a_capacity_is_noted_once_and_only_where_it_limits():
    model = random_adaptive().masked
    assert LimitTokens((16, None, 99))(model) is model
    limited = LimitTokens((5, None, 3))(model)
    assert [block.gates.tokens.capacity for block in limited.blocks if block.gates and block.gates.tokens] == [
        5,
        None,
        3,
    ]
    assert LimitTokens((5, None, 4))(limited) is limited


def test_what_cannot_be_a_capacity_is_refused():
    model = random_adaptive().masked
    with pytest.raises(PassError, match="a capacity of 0 patches"):
        LimitTokens((0, None, None))(model)
    with pytest.raises(PassError, match="1 entries for 3 blocks"):
        LimitTokens((4,))(model)
