"""MACs and parameters are those of the emitted file, and no product in it is larger than the masks require."""

import itertools
from collections.abc import Iterator

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from slimc import ir
from slimc.compiler.pipeline import compile_model, passes_for
from slimc.targets.count import block_macs, classifier_macs, count, embedding_macs
from slimc.targets.target import find_target
from tests.networks import Geometry, branches, dense_network, dense_networks, kept, masked_networks, soft_networks
from tests.onnx_files import Product, emitted, macs, parameters, products

targets = st.sampled_from(("generic", "cpu", "sm86"))


@settings(max_examples=60)
@given(masked_networks(), targets, st.integers(1, 3))
def test_slim_counts_are_those_of_the_file(network, target, batch_size):
    slim = compile_model(network, passes_for(find_target(target)))
    assert_counts(slim, target, batch_size)


@given(masked_networks() | soft_networks() | dense_networks(), targets, st.integers(1, 3))
def test_masked_and_dense_counts_are_those_of_the_file(network, target, batch_size):
    assert_counts(network, target, batch_size)


def assert_counts(network: ir.Model, target: str, batch_size: int) -> None:
    model = emitted(network, target=target, batch_size=batch_size)
    found = count(network, find_target(target))
    assert (found.macs * batch_size, found.params) == (macs(model), parameters(model))


@given(masked_networks(), targets)
def test_the_parts_add_up(network, target):
    slim = compile_model(network, passes_for(find_target(target)))
    parts = embedding_macs(slim) + sum(block_macs(slim, find_target(target))) + classifier_macs(slim)
    assert parts == count(slim, find_target(target)).macs


def test_a_dense_network_counts_what_the_textbook_says():
    geometry = Geometry(3, 4, 5, 20, 80, (4, 4), (3, 3), 1, 7, qkv_bias=True, pre_logits=False, residual_scale=1.0)
    tokens, dim, hidden = 10, 20, 80
    block = tokens * dim * 3 * dim + 2 * tokens * tokens * dim + tokens * dim * dim + 2 * tokens * dim * hidden
    found = count(dense_network(geometry, 0), find_target("generic"))
    assert found.macs == 9 * dim * 48 + 3 * block + dim * 7
    per_block = 4 * dim + 3 * dim * (dim + 1) + dim * (dim + 1) + hidden * (dim + 1) + dim * (hidden + 1)
    assert found.params == dim * 49 + 2 * 10 * dim + 3 * per_block + 2 * dim + 7 * (dim + 1) - 9 * dim


@settings(max_examples=100)
@given(masked_networks(), st.integers(1, 2))
def test_no_product_has_a_dimension_that_the_masks_made_unnecessary(network, batch_size):
    slim = compile_model(network, passes_for(find_target("generic")))
    assert_least_products(network, products(emitted(slim, batch_size=batch_size)), batch_size)


def assert_least_products(masked: ir.Model, found: dict[str, Product], batch_size: int) -> None:
    """Every product in `found` has exactly the dimensions that the masks of `masked` leave; none is missing or more."""
    left = dict(found)
    for block, (entering, leaving) in zip(masked.blocks, live_rows(masked), strict=True):
        _take_attention(left, block, entering, leaving, masked.dim, batch_size)
        _take_ffn(left, block, leaving, masked.dim, batch_size)
    patches = left.pop("patch_embed.proj", None)
    first = live_rows(masked)[0][0]
    assert (0 if patches is None else patches.batch * patches.rows) == batch_size * int((first >= masked.prefix).sum())
    assert all(name in ("logits", "head", "head_dist", "pre_logits.fc") for name in left)
    assert all(product.rows == batch_size for product in left.values())


def live_rows(masked: ir.Model) -> list[tuple[ir.IndexArray, ir.IndexArray]]:
    """Rows that have a reader, before and after the attention of every block: one that sees them, or the classifier."""
    needed = set(masked.classifier.rows)
    found = []
    for block in reversed(masked.blocks):
        attention, _ = branches(block)
        after = np.array(sorted(needed))
        if any(len(kept(head.mask, 1)) for head in attention.heads):
            needed |= set(kept(attention.token_mask, ir.embedded_rows(masked)).tolist())
        found.append((np.array(sorted(needed)), after))
    return found[::-1]


def _take_attention(
    left: dict[str, Product],
    block: ir.Block,
    entering: ir.IndexArray,
    leaving: ir.IndexArray,
    dim: int,
    batch_size: int,
) -> None:
    attention, _ = branches(block)
    name = f"{block.name}.attn"
    own = {key: left.pop(key) for key in list(left) if key.startswith(f"{name}.")}
    tokens = max(int(entering.max()) + 1, 0 if attention.token_mask is None else len(attention.token_mask))
    keys = kept(attention.token_mask, tokens) if attention.token_mask is not None else entering
    widths = sorted((len(kept(h.mask, len(h.query.weight))) for h in attention.heads), reverse=True)
    widths = [width for width in widths if width]
    if not widths or not len(keys):
        assert own == {}
        return
    groups = list(_groups(own, name, batch_size))
    sizes = [size for size, _ in groups]
    assert sum(sizes) == len(widths)
    starts = [0, *itertools.accumulate(sizes)]
    columns = sum(size * width for size, width in groups)
    ghosts = int(attention.token_mask is not None and not attention.token_mask.all())
    for (_, width), start, (scores, mixed) in zip(groups, starts, _scores_and_mixed(own, name), strict=False):
        assert width == widths[start]
        assert (scores.rows, scores.inner, scores.columns) == (len(leaving), width, len(keys) + ghosts)
        assert (mixed.rows, mixed.inner, mixed.columns) == (len(leaving), len(keys) + ghosts, width)
    _check_projections(own, name, keys, leaving, columns, dim, batch_size)


def _groups(own: dict[str, Product], name: str, batch_size: int) -> Iterator[tuple[int, int]]:
    """Heads and width of every group of an attention."""
    for scores, _ in _scores_and_mixed(own, name):
        yield scores.batch // batch_size, scores.inner


def _scores_and_mixed(own: dict[str, Product], name: str) -> list[tuple[Product, Product]]:
    scores = [product for key, product in own.items() if key.endswith(".scores")]
    mixed = [product for key, product in own.items() if key.endswith(".mixed")]
    assert len(scores) == len(mixed)
    assert all(key.startswith(name) for key in own)
    return list(zip(scores, mixed, strict=True))


def _check_projections(
    own: dict[str, Product],
    name: str,
    keys: ir.IndexArray,
    leaving: ir.IndexArray,
    columns: int,
    dim: int,
    batch_size: int,
) -> None:
    """q, k and v of exactly the rows that need them: keys as keys, rows that are left and seen as queries."""
    projected = {"q": 0, "k": 0, "v": 0}
    for key, product in own.items():
        kinds = key.removeprefix(f"{name}.")
        if kinds in ("q", "kv", "qkv"):
            assert (product.columns, product.inner) == (len(kinds) * columns, dim)
            for kind in kinds:
                projected[kind] += product.rows
    queries = len(np.intersect1d(keys, leaving))
    assert projected == {"q": batch_size * queries, "k": batch_size * len(keys), "v": batch_size * len(keys)}
    output = own[f"{name}.proj"]
    assert (output.rows, output.inner, output.columns) == (batch_size * len(leaving), columns, dim)


def _take_ffn(left: dict[str, Product], block: ir.Block, leaving: ir.IndexArray, dim: int, batch_size: int) -> None:
    _, mlp = branches(block)
    up, down = left.pop(f"{block.name}.mlp.fc1", None), left.pop(f"{block.name}.mlp.fc2", None)
    computed = leaving if mlp.token_mask is None else np.intersect1d(leaving, np.flatnonzero(mlp.token_mask))
    width = len(kept(mlp.mask, len(mlp.up.weight)))
    if not width or not len(computed):
        assert up is None
        assert down is None
        return
    rows = batch_size * len(computed)
    assert up == Product("Gemm", 1, rows, dim, width)
    assert down == Product("Gemm", 1, rows, width, dim)
