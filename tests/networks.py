"""Random small networks to try rewrites on: ragged masks, empty heads and layers, cls masked, prefixes, odd grids.

Structure and masks are drawn by hypothesis, so that a failure shrinks and reproduces; weights come from a drawn seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from slimc import ir
from slimc.ir.interpret.linear import Float64
from slimc.ir.interpret.model import interpret
from slimc.passes.rewrite import Pass

EPS = 1e-6


@dataclass(frozen=True)
class Geometry:
    """What a network is made of before anything is masked."""

    depth: int
    heads: int
    head_dim: int
    dim: int
    hidden: int
    patch: tuple[int, int]
    grid: tuple[int, int]
    prefix: int
    classes: int
    qkv_bias: bool
    pre_logits: bool
    residual_scale: float

    @property
    def tokens(self) -> int:
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def image(self) -> tuple[int, int]:
        return self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]


@st.composite
def geometries(draw: st.DrawFn, depth: st.SearchStrategy[int] | None = None) -> Geometry:
    """Geometries of networks that take milliseconds to interpret."""
    prefix = draw(st.sampled_from((1, 1, 2)))
    return Geometry(
        depth=draw(st.integers(1, 4) if depth is None else depth),
        heads=draw(st.integers(1, 4)),
        head_dim=draw(st.integers(1, 5)),
        dim=draw(st.integers(4, 9)),
        hidden=draw(st.integers(1, 8)),
        patch=draw(st.sampled_from(((2, 2), (1, 2), (3, 1)))),
        grid=(draw(st.integers(1, 3)), draw(st.integers(1, 4))),
        prefix=prefix,
        classes=draw(st.integers(2, 5)),
        qkv_bias=draw(st.booleans()),
        pre_logits=prefix == 1 and draw(st.booleans()),
        residual_scale=draw(st.sampled_from((1.0, 1.0, 0.5))),
    )


def binary(size: int) -> st.SearchStrategy[ir.FloatArray]:
    """Masks of zeros and ones: all kept, none kept, or any."""
    some = st.lists(st.sampled_from((0.0, 1.0)), min_size=size, max_size=size)
    whole = st.sampled_from(([1.0] * size, [0.0] * size))
    return st.one_of(some, some, whole).map(np.array)


def soft(size: int) -> st.SearchStrategy[ir.FloatArray]:
    """Masks of any size, as before binarisation."""
    return st.lists(st.floats(-1.5, 1.5, width=16), min_size=size, max_size=size).map(np.array)


@st.composite
def masked_networks(draw: st.DrawFn, *, ored: bool | None = None) -> ir.Model:
    """Networks with binary masks in float64.

    With `ored` the patch masks are those of ViT-Slim: one a layer, shared by both branches, and a patch that is gone stays
    gone. Without it every branch has a mask of its own, any mask. None draws which.
    """
    geometry = draw(geometries())
    network = dense_network(geometry, draw(st.integers(0, 2**16)))
    ored = draw(st.booleans()) if ored is None else ored
    return _masked(draw, network, geometry, binary, _token_masks(draw, geometry, ored))


@st.composite
def soft_networks(draw: st.DrawFn) -> ir.Model:
    """Networks whose channel masks are real numbers; patches are not masked."""
    geometry = draw(geometries())
    network = dense_network(geometry, draw(st.integers(0, 2**16)))
    nothing: list[tuple[None, None]] = [(None, None)] * geometry.depth
    return _masked(draw, network, geometry, soft, nothing)


@st.composite
def dense_networks(draw: st.DrawFn) -> ir.Model:
    """Networks without masks."""
    return dense_network(draw(geometries()), draw(st.integers(0, 2**16)))


def _token_masks(
    draw: st.DrawFn, geometry: Geometry, ored: bool
) -> list[tuple[ir.FloatArray | None, ir.FloatArray | None]]:
    masks = st.none() | binary(geometry.tokens)
    if not ored:
        return [(draw(masks), draw(masks)) for _ in range(geometry.depth)]
    kept, later = [], np.zeros(geometry.tokens)
    for _ in range(geometry.depth):
        later = np.maximum(later, draw(binary(geometry.tokens)))
        kept.append((later, later))
    return list(reversed(kept))


def _masked(
    draw: st.DrawFn,
    network: ir.Model,
    geometry: Geometry,
    masks: Callable[[int], st.SearchStrategy[ir.FloatArray]],
    tokens: Sequence[tuple[ir.FloatArray | None, ir.FloatArray | None]],
) -> ir.Model:
    blocks = []
    for block, (first, second) in zip(network.blocks, tokens, strict=True):
        attention, mlp = branches(block)
        drawn = [draw(masks(geometry.head_dim)) for _ in attention.heads]
        heads = tuple(replace(head, mask=m, value_mask=m) for head, m in zip(attention.heads, drawn, strict=True))
        blocks.append(
            replace(
                block,
                attention=replace(attention, heads=heads, token_mask=first),
                mlp=replace(mlp, mask=draw(masks(geometry.hidden)), token_mask=second),
            )
        )
    return replace(network, blocks=tuple(blocks))


def branches(block: ir.Block) -> tuple[ir.Attention, ir.Mlp]:
    """Attention and FFN of a block that has both."""
    assert isinstance(block.attention, ir.Attention)
    assert isinstance(block.mlp, ir.Mlp)
    return block.attention, block.mlp


def kept(mask: ir.FloatArray | None, size: int) -> ir.IndexArray:
    """Where `mask` is one: everywhere in `size` entries where there is none."""
    return np.arange(size) if mask is None else np.flatnonzero(mask)


def is_soft(mask: ir.FloatArray | None) -> bool:
    """Whether `mask` has an entry that is neither zero nor one."""
    return mask is not None and not np.isin(mask, (0, 1)).all()


def dense_network(geometry: Geometry, seed: int) -> ir.Model:
    """A network in float64 of the given geometry, in which no bias, norm or position is trivial."""
    return _Builder(geometry, np.random.default_rng(seed)).model()


@dataclass(frozen=True)
class _Builder:
    geometry: Geometry
    random: np.random.Generator

    def normal(self, *shape: int, std: float = 0.5, mean: float = 0.0) -> ir.FloatArray:
        return self.random.normal(mean, std, shape)

    def linear(self, out: int, into: int, *, bias: bool = True) -> ir.Linear:
        return ir.Linear(self.normal(out, into, std=into**-0.5), self.normal(out) if bias else None)

    def norm(self) -> ir.LayerNorm:
        dim = self.geometry.dim
        return ir.LayerNorm(self.normal(dim, std=0.2, mean=1.0), self.normal(dim, std=0.2), EPS)

    def head(self) -> ir.Head:
        g = self.geometry
        query, key, value = (self.linear(g.head_dim, g.dim, bias=g.qkv_bias) for _ in range(3))
        return ir.Head(query, key, value, self.normal(g.dim, g.head_dim))

    def block(self, index: int) -> ir.Block:
        g = self.geometry
        attention = ir.Attention(
            norm=self.norm(),
            heads=tuple(self.head() for _ in range(g.heads)),
            output_bias=self.normal(g.dim),
            scale=float(g.head_dim**-0.5),
            residual_scale=g.residual_scale,
        )
        up, down = self.linear(g.hidden, g.dim), self.linear(g.dim, g.hidden)
        return ir.Block(f"blocks.{index}", attention, ir.Mlp(self.norm(), up, down, residual_scale=g.residual_scale))

    def embedding(self) -> ir.Embedding:
        g = self.geometry
        return ir.Embedding(
            patch=ir.PatchEmbed(self.normal(g.dim, 3, *g.patch), self.normal(g.dim)),
            prefix=self.normal(g.prefix, g.dim),
            prefix_position=self.normal(g.prefix, g.dim),
            patch_position=self.normal(g.tokens - g.prefix, g.dim),
        )

    def classifier(self) -> ir.Classifier:
        g = self.geometry
        pre_logits = self.linear(g.dim + 1, g.dim) if g.pre_logits else None
        features = g.dim + 1 if g.pre_logits else g.dim
        heads = tuple(self.linear(g.classes, features) for _ in range(g.prefix))
        return ir.Classifier(self.norm(), tuple(range(g.prefix)), heads, pre_logits, scale=1 / g.prefix)

    def model(self) -> ir.Model:
        g = self.geometry
        blocks = tuple(self.block(i) for i in range(g.depth))
        return ir.Model(g.image, self.embedding(), blocks, self.classifier())


def images_for(network: ir.Model, count: int = 2) -> Float64:
    """Standard normal images that `network` takes."""
    return np.random.default_rng(count).standard_normal((count, 3, *network.image))


def run(network: ir.Model, *passes: Pass) -> ir.Model:
    """`network` after `passes`."""
    for step in passes:
        network = step(network)
    return network


def assert_same_meaning(before: ir.Model, after: ir.Model) -> None:
    """Both networks give the same logits to 1e-9, in float64."""
    images = images_for(before)
    np.testing.assert_allclose(interpret(after, images), interpret(before, images), rtol=0, atol=1e-9)


def assert_same_interface(before: ir.Model, after: ir.Model) -> None:
    """Both networks take the same images and give as many logits, and their blocks keep their names."""
    assert (after.image, after.classes, after.dim) == (before.image, before.classes, before.dim)
    assert [block.name for block in after.blocks] == [block.name for block in before.blocks]
