"""A model that contradicts itself is found, and the node that does is named."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from slimc import ir
from slimc.errors import ValidationError
from slimc.ir.validate import validate
from tests.networks import Geometry, branches, dense_network, dense_networks, masked_networks, soft_networks

NETWORK = dense_network(
    Geometry(2, 2, 3, 6, 4, (2, 2), (2, 2), 1, 3, qkv_bias=True, pre_logits=False, residual_scale=1.0), 0
)


@given(masked_networks() | soft_networks() | dense_networks())
def test_networks_as_front_ends_make_them_are_well_formed(network):
    validate(network)


def block(**changes: object) -> ir.Model:
    changed = replace(NETWORK.blocks[1], **changes)  # type: ignore[arg-type]
    return replace(NETWORK, blocks=(NETWORK.blocks[0], changed))


def attention(**changes: object) -> ir.Model:
    return block(attention=replace(branches(NETWORK.blocks[1])[0], **changes))  # type: ignore[arg-type]


def mlp(**changes: object) -> ir.Model:
    return block(mlp=replace(branches(NETWORK.blocks[1])[1], **changes))  # type: ignore[arg-type]


def head(**changes: object) -> ir.Model:
    first, second = branches(NETWORK.blocks[1])[0].heads
    return attention(heads=(first, replace(second, **changes)))  # type: ignore[arg-type]


def embedding(**changes: object) -> ir.Model:
    return replace(NETWORK, embedding=replace(NETWORK.embedding, **changes))  # type: ignore[arg-type]


def classifier(**changes: object) -> ir.Model:
    return replace(NETWORK, classifier=replace(NETWORK.classifier, **changes))  # type: ignore[arg-type]


def indices(*values: int) -> ir.IndexArray:
    return np.array(values, np.int64)


def unbiased() -> tuple[ir.Head, ...]:
    heads = branches(NETWORK.blocks[1])[0].heads
    return tuple(replace(h, key=ir.Linear(h.key.weight), value=ir.Linear(h.value.weight)) for h in heads)


def narrow() -> ir.Head:
    linear = ir.Linear(np.ones((2, 6)))
    return ir.Head(linear, linear, linear, np.ones((6, 2)))


BROKEN: dict[str, tuple[Callable[[], ir.Model], str]] = {
    "live outside": (lambda: block(live=indices(5)), r"blocks.1.live: indices outside the 5 rows"),
    "live negative": (lambda: block(live=indices(-1)), r"blocks.1.live: indices outside the 5 rows"),
    "live twice": (lambda: block(live=indices(0, 0)), r"blocks.1.live: an index stands twice"),
    "live of two axes": (lambda: block(live=np.zeros((1, 1), np.int64)), r"blocks.1.live: indices outside"),
    "constant": (lambda: block(attention=ir.Constant(np.ones(5))), r"blocks.1.attn: shape \(5,\), expected \(6,\)"),
    "constant ffn": (lambda: block(mlp=ir.Constant(np.ones(5))), r"blocks.1.mlp: shape \(5,\), expected \(6,\)"),
    "norm": (lambda: mlp(norm=ir.LayerNorm(np.ones(6), np.ones(5), 1e-6)), r"blocks.1.mlp.norm.bias: shape \(5,\)"),
    "up": (lambda: mlp(up=ir.Linear(np.ones((3, 6)))), r"blocks.1.mlp.down.weight: shape \(6, 4\), expected \(6, 3\)"),
    "ffn mask": (lambda: mlp(mask=np.ones(3)), r"blocks.1.mlp.mask: shape \(3,\), expected \(4,\)"),
    "ffn token mask": (lambda: mlp(token_mask=np.ones(4)), r"blocks.1.mlp.token_mask: shape \(4,\), expected \(5,\)"),
    "ffn rows": (lambda: mlp(rows=indices(7)), r"blocks.1.mlp.rows: indices outside the 5 rows"),
    "head query": (lambda: head(query=ir.Linear(np.ones((2, 6)))), r"blocks.1.attn.heads\[1\].key.weight: shape"),
    "head output": (lambda: head(output=np.ones((6, 2))), r"blocks.1.attn.heads\[1\].output: shape"),
    "head mask": (lambda: head(mask=np.ones(2)), r"blocks.1.attn.heads\[1\].mask: shape"),
    "head mask of another width": (
        lambda: head(value=ir.Linear(np.ones((2, 6))), output=np.ones((6, 2)), value_mask=np.ones(3)),
        r"heads\[1\].value_mask: shape \(3,\), expected \(2,\)",
    ),
    "ghosts negative": (lambda: attention(ghosts=-1), r"blocks.1.attn.ghosts: -1 is negative"),
    "no key at all": (lambda: attention(rows=indices()), "a softmax over no key"),
    "groups that do not add up": (lambda: attention(groups=(1,)), r"groups: \(1,\) do not add up to 2 heads"),
    "an empty group": (lambda: attention(groups=(2, 0)), "do not add up to 2 heads"),
    "a group of two widths": (
        lambda: attention(
            groups=(2,),
            heads=(unbiased()[0], narrow()),
        ),
        "heads 0 to 1 have different widths",
    ),
    "patches outside": (
        lambda: embedding(patch=replace(NETWORK.embedding.patch, patches=indices(4))),
        "embedding.patch.patches: indices outside the 4 rows",
    ),
    "positions": (lambda: embedding(patch_position=np.ones((3, 6))), "embedding.patch_position: shape"),
    "prefix positions": (lambda: embedding(prefix_position=np.ones((2, 6))), "embedding.prefix_position: shape"),
    "image": (lambda: replace(NETWORK, image=(4, 5)), "patches of 2x2 do not tile an image"),
    "classifier row": (lambda: classifier(rows=(5,)), r"classifier.rows: \(5,\) do not fit 5 rows and 1 heads"),
    "classifier rows": (lambda: classifier(rows=(0, 1)), "do not fit 5 rows and 1 heads"),
    "classifier head": (lambda: classifier(heads=(ir.Linear(np.ones((3, 5))),)), "classifier.heads.weight: shape"),
    "pre_logits": (lambda: classifier(pre_logits=ir.Linear(np.ones((7, 6)))), "classifier.heads.weight: shape"),
    "two types": (
        lambda: embedding(prefix=NETWORK.embedding.prefix.astype(np.float32)),
        "more than one floating-point type",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_contradiction_is_found_and_named(kind):
    broken, message = BROKEN[kind]
    with pytest.raises(ValidationError, match=message):
        validate(broken())


def test_ghosts_alone_make_a_softmax():
    validate(attention(rows=indices(), ghosts=5))
