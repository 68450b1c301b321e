from dataclasses import replace

import numpy as np
import pytest

from slimc import ir
from slimc.errors import ValidationError
from slimc.ir.validate import validate
from tests.gated import VECTORS, random_adaptive, vector


def changed(**fields):
    """A small adaptive model whose block 1 has other `fields`; a function makes one from what there was."""
    model = random_adaptive().masked
    block = model.blocks[1]
    values = {name: value(getattr(block, name)) for name, value in fields.items()}
    return replace(model, blocks=(model.blocks[0], replace(block, **values), model.blocks[2]))


def narrow(linear):
    return ir.Linear(linear.weight[:, :-1], linear.bias)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"gates": lambda g: replace(g, attention=narrow(g.attention))}, r"blocks.1.gates.attention.weight: shape"),
        ({"gates": lambda g: replace(g, heads=narrow(g.heads))}, r"blocks.1.gates.heads.weight: shape"),
        ({"gates": lambda g: replace(g, heads=None)}, r"heads\[0\].gate: 0 of 0 decisions"),
        ({"gates": lambda g: replace(g, tokens=replace(g.tokens, capacity=0))}, "capacity: 0 is less than one patch"),
        ({"gates": lambda g: replace(g, tokens=replace(g.tokens, norm=replace(g.tokens.norm, eps=1.0)))}, "shared"),
        ({"mlp": lambda m: replace(m, input_gates=np.full(16, 4))}, "input_gates: not 16 entries from -1 to 3"),
        ({"mlp": lambda m: replace(m, unit_gates=np.full(3, 0))}, "unit_gates: not 32 entries"),
        ({"mlp": lambda m: replace(m, inputs=np.arange(3))}, r"mlp.up.weight: shape"),
        ({"mlp": lambda _: ir.Constant(np.zeros(16, np.float32))}, "a constant branch depends on no image"),
        ({"attention": lambda a: replace(a, rows=np.arange(3))}, "for each image or for all of them, not both"),
        ({"live": lambda _: np.array([1])}, "rows that are cut must be the last ones"),
    ],
)
def test_a_block_whose_gates_contradict_it_is_refused_by_name(fields, match):
    with pytest.raises(ValidationError, match=match):
        validate(changed(**fields))


def test_a_performer_of_the_wrong_width_is_refused():
    model = vector(VECTORS[2]).searched.masked
    first, *rest = model.embedding.stem
    assert isinstance(first, ir.SoftSplit)
    assert first.performer is not None
    broken = replace(first, performer=replace(first.performer, key=narrow(first.performer.key)))
    with pytest.raises(ValidationError, match=r"stem\[0\].performer.key.weight: shape"):
        validate(replace(model, embedding=replace(model.embedding, stem=(broken, *rest))))
