"""Random small plain vision transformers: whatever the IR can say beyond the three systems, by name, in float64.

`plain_network(seed, rotation="shared", gated=True)` is one of them, and the same every time; `plain_networks()` draws
them by hypothesis. No bias, norm, position or angle is trivial.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from hypothesis import strategies as st

from slimc import ir

NormKind = Literal["layer", "rms"]
PoolName = Literal["avg", "max", "avgmax", "token+avg", "latent", "absorbed"]
EPS = 1e-6
# Few channels may all be close to zero: with a small eps their signs would be all that is left of them.
INNER_EPS = 0.05


@dataclass(frozen=True)
class Features:
    """What a network has.

    `biases` are those of "q", "k", "v" and "o" that have one. `ghosts` are the channels that norms inside the branches stand
    for beyond those they have, negative for padding. With `ragged` heads have several widths. `masks` are on channels:
    "binary" or "soft". `token_masks` stand on both branches; `rows` and `live` are what passes make of such masks, the
    attention with `zero_rows` ghosts. `patches` embeds some patches only, in another order. `outputs` are asked for by
    name. Without `head` there are no logits.
    """

    depth: int = 2
    heads: int = 3
    head_dim: int = 4
    value_dim: int | None = None
    dim: int = 10
    hidden: int = 6
    patch: tuple[int, int] = (2, 2)
    grid: tuple[int, int] = (3, 2)
    prefix: int = 1
    classes: int = 4
    norm: NormKind = "layer"
    biases: str = "qkvo"
    rotation: Literal["shared", "per head"] | None = None
    qk_norm: NormKind | None = None
    output_norm: NormKind | None = None
    inner_norm: NormKind | None = None
    ghosts: int = 0
    activation: ir.Activation = "gelu"
    gated: bool = False
    layer_scale: bool = False
    residual_scale: float = 1.0
    ragged: bool = False
    masks: Literal["binary", "soft"] | None = None
    token_masks: bool = False
    rows: bool = False
    zero_rows: int = 0
    live: bool = False
    patches: bool = False
    positions: bool = True
    patch_norm: NormKind | None = None
    norm_pre: NormKind | None = None
    final_norm: NormKind | None = "layer"
    pooled_norm: NormKind | None = None
    pool: PoolName | None = None
    latent_mlp: bool = True
    pre_logits: bool = False
    head: bool = True
    outputs: tuple[str, ...] = ("logits",)


def plain_network(seed: int, **features: Any) -> ir.Model:
    """The network of these `Features`, its weights drawn from `seed`."""
    return _Builder(Features(**features), np.random.default_rng(seed)).model()


@st.composite
def plain_features(draw: st.DrawFn, /, **fixed: Any) -> Features:
    """Any features that go together; those that are `fixed` are taken as they are."""
    norms = st.sampled_from(get_args(NormKind))
    some_norm = st.none() | norms
    prefix = int(draw(st.sampled_from((0, 1, 1, 2))))
    pools = [*get_args(PoolName), None] if prefix else ["avg", "max", "avgmax", "latent", "absorbed"]
    head = draw(st.sampled_from((True, True, True, False)))
    blocks = draw(st.sampled_from(((), ("blocks.0",), ("tokens",), ("tokens", "blocks.1"))))
    drawn: dict[str, Any] = {
        "heads": draw(st.integers(1, 4)),
        "head_dim": draw(st.sampled_from((2, 4, 6))),
        "value_dim": draw(st.none() | st.integers(1, 5)),
        "hidden": draw(st.integers(1, 8)),
        "patch": draw(st.sampled_from(((2, 2), (1, 2)))),
        "grid": draw(st.sampled_from(((2, 2), (3, 2), (1, 4)))),
        "prefix": prefix,
        "norm": draw(norms),
        "biases": draw(st.sampled_from(("qkvo", "qvo", "q", "vo", ""))),
        "rotation": draw(st.sampled_from((None, "shared", "per head"))),
        "qk_norm": draw(some_norm),
        "output_norm": draw(some_norm),
        "inner_norm": draw(some_norm),
        "ghosts": draw(st.sampled_from((0, 0, 3))),
        "activation": draw(st.sampled_from(get_args(ir.Activation))),
        "gated": draw(st.booleans()),
        "layer_scale": draw(st.booleans()),
        "residual_scale": draw(st.sampled_from((1.0, 1.0, 0.5))),
        "ragged": draw(st.booleans()),
        "masks": draw(st.sampled_from((None, "binary", "soft"))),
        "token_masks": draw(st.booleans()),
        "live": draw(st.booleans()),
        "patches": draw(st.booleans()),
        "positions": draw(st.booleans()),
        "patch_norm": draw(some_norm),
        "norm_pre": draw(some_norm),
        "final_norm": draw(some_norm),
        "pooled_norm": draw(some_norm),
        "pool": draw(st.sampled_from(pools)),
        "latent_mlp": draw(st.booleans()),
        "pre_logits": draw(st.booleans()),
        "head": head,
        "outputs": (*(("logits", "features") if head else ("features",)), *blocks),
    }
    return Features(**{**drawn, **fixed})


@st.composite
def plain_networks(draw: st.DrawFn, /, **fixed: Any) -> ir.Model:
    """Networks as a front end makes them: with masks, without what passes leave behind unless that is `fixed`."""
    features = draw(plain_features(**{"patches": False, "live": False, "ragged": False, "ghosts": 0, **fixed}))
    return plain_network(draw(st.integers(0, 2**16)), **_items(features))


@st.composite
def plain_rewritten_networks(draw: st.DrawFn, /, **fixed: Any) -> ir.Model:
    """Networks as passes leave them: of ragged heads, with rows that are not read, ghosts and rows that end early."""
    rows = draw(st.booleans())
    zero_rows = draw(st.sampled_from((0, 1, 3, 20)))
    features = draw(plain_features(**{"rows": rows, "zero_rows": zero_rows, "token_masks": False, **fixed}))
    return plain_network(draw(st.integers(0, 2**16)), **_items(features))


def _items(features: Features) -> dict[str, Any]:
    return {field.name: getattr(features, field.name) for field in fields(features)}


def images_of(network: ir.Model, count: int = 2) -> ir.FloatArray:
    """Standard normal images that `network` takes, float32 numbers in float64."""
    shape = (count, network.embedding.channels, *network.image)
    return np.random.default_rng(count).standard_normal(shape).astype(np.float32).astype(np.float64)


@dataclass(frozen=True)
class _Builder:
    features: Features
    random: np.random.Generator

    def normal(self, *shape: int, std: float = 0.5, mean: float = 0.0) -> ir.FloatArray:
        return self.random.normal(mean, std, shape)

    def linear(self, out: int, into: int, *, bias: bool = True) -> ir.Linear:
        return ir.Linear(self.normal(out, into, std=max(into, 1) ** -0.5), self.normal(out) if bias else None)

    def norm(self, kind: NormKind | None, width: int, ghosts: int = 0, eps: float = EPS) -> ir.Norm | None:
        if kind is None:
            return None
        weight = self.normal(width, std=0.2, mean=1.0)
        if kind == "rms":
            return ir.RmsNorm(weight, eps)
        # Padding may not be all there is.
        return ir.LayerNorm(weight, self.normal(width, std=0.2), eps, max(ghosts, 1 - width))

    def block_norm(self) -> ir.Norm:
        norm = self.norm(self.features.norm, self.features.dim)
        assert norm is not None
        return norm

    def mask(self, width: int) -> ir.FloatArray | None:
        kind = self.features.masks
        if kind is None:
            return None
        return self.random.integers(0, 2, width).astype(float) if kind == "binary" else self.normal(width, std=1.0)

    def some(self, rows: int, always: int) -> ir.IndexArray:
        """The first `always` of `rows`, and some of the others, one at least; in order."""
        others = np.arange(always, rows)
        kept = self.random.permutation(others)[: max(1, (2 * len(others)) // 3)]
        return np.concatenate([np.arange(always), np.sort(kept)]).astype(np.int64)

    def rotation(self, rows: int, width: int) -> ir.Rotation:
        angle = self.random.uniform(-3, 3, (rows, width // 2))
        angle[: self.features.prefix] = 0.0
        return ir.Rotation(np.cos(angle), np.sin(angle))

    def head(self, i: int, rows: int, shared: ir.Rotation | None) -> ir.Head:
        f = self.features
        width, value_width = f.head_dim, f.head_dim if f.value_dim is None else f.value_dim
        if f.ragged:
            value_width += i // 2
            # A norm of q and k has one width.
            width += 0 if f.qk_norm else 2 * (i // 2)
        rotation = None
        if f.rotation is not None:
            fits = f.rotation == "shared" and shared is not None and shared.cos.shape[1] == width // 2
            rotation = shared if fits else self.rotation(rows, width)
        query, key, value = (
            self.linear(out, f.dim, bias=kind in f.biases)
            for kind, out in (("q", width), ("k", width), ("v", value_width))
        )
        output = self.normal(f.dim, value_width)
        mask, value_mask = self.mask(width), self.mask(value_width)
        return ir.Head(query, key, value, output, mask, value_mask=value_mask, rotation=rotation)

    def attention(self, rows: int) -> ir.Attention:
        f = self.features
        shared = self.rotation(rows, f.head_dim) if f.rotation == "shared" else None
        heads = tuple(self.head(i, rows, shared) for i in range(f.heads))
        values = sum(len(head.value.weight) for head in heads)
        seen = self.some(rows, 0) if f.rows else None
        return ir.Attention(
            norm=self.block_norm(),
            heads=heads,
            output_bias=self.normal(f.dim) if "o" in f.biases else None,
            scale=f.head_dim**-0.5,
            token_mask=self.random.integers(0, 2, rows).astype(float) if f.token_masks else None,
            rows=seen,
            ghosts=f.zero_rows,
            residual_scale=f.residual_scale,
            layer_scale=self.normal(f.dim) if f.layer_scale else None,
            query_norm=self.norm(f.qk_norm, f.head_dim, eps=INNER_EPS),
            key_norm=self.norm(f.qk_norm, f.head_dim, eps=INNER_EPS),
            output_norm=self.norm(f.output_norm, values, f.ghosts, INNER_EPS),
        )

    def mlp(self, rows: int) -> ir.Mlp:
        f = self.features
        return ir.Mlp(
            norm=self.block_norm(),
            up=self.linear(f.hidden, f.dim),
            down=self.linear(f.dim, f.hidden),
            mask=self.mask(f.hidden),
            token_mask=self.random.integers(0, 2, rows).astype(float) if f.token_masks else None,
            rows=self.some(rows, 0) if f.rows else None,
            residual_scale=f.residual_scale,
            activation=f.activation,
            gate=self.linear(f.hidden, f.dim) if f.gated else None,
            inner_norm=self.norm(f.inner_norm, f.hidden, f.ghosts, INNER_EPS),
            layer_scale=self.normal(f.dim) if f.layer_scale else None,
        )

    def embedding(self) -> ir.Embedding:
        f = self.features
        count = f.grid[0] * f.grid[1]
        chosen = self.random.permutation(count)[: max(1, count - 1)] if f.patches else None
        count = count if chosen is None else len(chosen)
        return ir.Embedding(
            patch=ir.PatchEmbed(self.normal(f.dim, 3, *f.patch), self.normal(f.dim), chosen),
            prefix=self.normal(f.prefix, f.dim),
            prefix_position=self.normal(f.prefix, f.dim) if f.positions else None,
            patch_position=self.normal(count, f.dim) if f.positions else None,
            patch_norm=self.norm(f.patch_norm, f.dim),
            norm=self.norm(f.norm_pre, f.dim),
        )

    def latent_pool(self, rows: int, *, absorbed: bool) -> ir.LatentPool:
        f = self.features
        width = 1 if absorbed else f.head_dim
        heads = []
        for i in range(f.heads):
            value_width = f.head_dim + (i // 2 if f.ragged else 0)
            query = np.ones(1) if absorbed else self.normal(width)
            key, value = self.linear(width, f.dim, bias=not absorbed), self.linear(value_width, f.dim)
            # What absorbs the query has no mask of q and k.
            mask, value_mask = None if absorbed else self.mask(width), self.mask(value_width)
            heads.append(ir.LatentHead(query, key, value, self.normal(f.dim, value_width), mask, value_mask))
        mlp = replace(self.mlp(1), rows=None, token_mask=None, residual_scale=1.0, layer_scale=None)
        return ir.LatentPool(
            heads=tuple(heads),
            output_bias=self.normal(f.dim),
            scale=1.0 if absorbed else f.head_dim**-0.5,
            rows=np.arange(f.prefix, rows),
            mlp=mlp if f.latent_mlp else None,
            absorbed=absorbed,
        )

    def pool(self, rows: int) -> ir.Pool | ir.LatentPool | None:
        f = self.features
        if f.pool is None:
            return None
        if f.pool in ("latent", "absorbed"):
            return self.latent_pool(rows, absorbed=f.pool == "absorbed")
        patches = np.arange(f.prefix, rows)
        if f.pool == "token+avg":
            return ir.Pool("token+avg", np.concatenate([[0], patches]))
        return ir.Pool(f.pool, patches)  # type: ignore[arg-type]

    def classifier(self, rows: int) -> ir.Classifier:
        f = self.features
        features = 2 * f.dim if f.pool == "token+avg" else f.dim
        read = tuple(range(f.prefix)) if f.pool is None else ()
        into = features + 1 if f.pre_logits else features
        return ir.Classifier(
            norm=self.norm(f.final_norm, f.dim),
            rows=read,
            heads=tuple(self.linear(f.classes, into) for _ in range(len(read) or 1)) if f.head else (),
            pre_logits=self.linear(into, features) if f.pre_logits else None,
            scale=1 / (len(read) or 1),
            pool=self.pool(rows),
            pooled_norm=self.norm(f.pooled_norm, features),
        )

    def model(self) -> ir.Model:
        f = self.features
        embedding, blocks, left = self.embedding(), [], []
        image = (f.grid[0] * f.patch[0], f.grid[1] * f.patch[1])
        patches = embedding.patch.patches
        rows = f.prefix + (f.grid[0] * f.grid[1] if patches is None else len(patches))
        for i in range(f.depth):
            live = self.some(rows, f.prefix) if f.live else None
            entering, rows = rows, rows if live is None else len(live)
            left.append(rows)
            blocks.append(ir.Block(f"blocks.{i}", self.attention(entering), self.mlp(rows), live))
        outputs = tuple(self.output(name, left) for name in f.outputs)
        return ir.Model(image, embedding, tuple(blocks), self.classifier(rows), outputs)

    def output(self, name: str, left: list[int]) -> ir.Output:
        kind, _, layout = name.partition(":")
        kind, _, block = kind.partition(".")
        if kind in ("logits", "features"):
            return ir.Output(kind)  # type: ignore[arg-type]
        number = int(block) if block else None
        rows = np.arange(self.features.prefix, left[-1 if number is None else number])
        return ir.Output(kind, number, rows, "NCHW" if layout else "NLC")  # type: ignore[arg-type]
