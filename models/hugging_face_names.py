"""Weights under Hugging Face's names as timm's state dict: names mapped, projections joined, positions resized.

The names changed over the releases of transformers: those in files and those in its modules are both known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from slimc.models.weights import Weights

_BLOCK = re.compile(r"(?:encoder\.layers?|layers?|model\.layer)\.(\d+)\.(.+)")
_IN_BLOCK = {
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.proj",
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
    "self_attn.out_proj": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.fc2",
}
_OUTSIDE = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.patch_embeddings": "patch_embed.proj",
    "embeddings.patch_embedding": "patch_embed.proj",
    "pre_layrnorm": "norm_pre",
    "layernorm": "norm",
    "post_layernorm": "norm",
    "norm": "norm",
    "classifier": "head",
    "cls_classifier": "head",
    "visual_projection": "projection",
    "distillation_classifier": "head_dist",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp.fc1": "attn_pool.mlp.fc1",
    "head.mlp.fc2": "attn_pool.mlp.fc2",
}
# Names without weight or bias.
_WHOLE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.class_embedding": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.position_embedding.weight": "pos_embed",
    "head.probe": "attn_pool.latent",
    "head.attention.in_proj_weight": "attn_pool.in_proj.weight",
    "head.attention.in_proj_bias": "attn_pool.in_proj.bias",
}
_IN_BLOCK_WHOLE = {"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"}


def timm_name(name: str) -> str | None:
    """What stands for `name` below, without any prefix; none for a name that is not known."""
    block = _BLOCK.fullmatch(name)
    inner = block[2] if block else name
    base, _, kind = inner.rpartition(".")
    known, whole = (_IN_BLOCK, _IN_BLOCK_WHOLE) if block else (_OUTSIDE, _WHOLE)
    found = whole.get(inner) or (f"{known[base]}.{kind}" if base in known and kind in ("weight", "bias") else None)
    return f"blocks.{block[1]}.{found}" if block and found else found


class Source:
    """The weights of one file under the names of `timm_name`; each is to be taken, or skipped by name."""

    def __init__(self, path: Path, state: Mapping[str, Tensor], prefixes: tuple[str, ...] = ()) -> None:
        self._weights = Weights(path, state)
        self._names: dict[str, str] = {}
        self._own: dict[str, str] = {}
        for name in state:
            inner = next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)
            self._own[name] = inner
            found = timm_name(inner)
            if found is not None:
                self._names.setdefault(found, name)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def take(self, name: str, *shape: int) -> Tensor:
        """The weight `name` in float32.

        Raises:
            CheckpointError: see `slimc.models.weights.Weights.take`.
        """
        return torch.from_numpy(self._weights.take(self._names.get(name, name), shape))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the weight `name`."""
        return self._weights.shape(self._names.get(name, name))

    def skip(self, *starts: str) -> int:
        """Say that weights whose own names, without a prefix, start so do not matter; gives their number."""
        skipped = [name for name, inner in self._own.items() if inner.startswith(starts)]
        for name in skipped:
            self._weights.skip(name)
        return len(skipped)

    def finish(self) -> None:
        """Check that every weight was taken or skipped.

        Raises:
            CheckpointError: one was not.
        """
        self._weights.finish()


@dataclass(frozen=True)
class Tower:
    """The shape of a vision tower.

    Attributes:
        dim, depth, heads, hidden: numbers of channels, blocks, heads, and hidden units.
        image, patch: pixels, height and width.
        native: the grid that the file's positions are for, rows and columns.
        channels: of the images.
        prefix: rows before the patches: class token, distillation token, registers.
        registers: how many of them are registers.
        positions: which rows the file has positions for: "all" that stand before the patches too, the "class" token and
            the patches, the "patches", or "none".
        eps: of every norm.
        activation: of the hidden units, by timm's name.
        theta: the base of rotary positions; none where there are none.
        biases: which linear layers have one in the file, of q, k, v, proj, mlp, patch.
        gated: whether the hidden units are gated.
        scales: whether branches are scaled by channel.
        linear_patches: whether the file's patch embedding is a linear layer over pixels in the order of rows, columns,
            channels.
        bilinear: whether its own code resizes positions bilinearly, rather than bicubically.
        pre_norm, final_norm, map_pool: whether there is a norm before the blocks, after them, a pool with a latent query.
    """

    dim: int
    depth: int
    heads: int
    hidden: int
    image: tuple[int, int]
    patch: tuple[int, int]
    native: tuple[int, int]
    channels: int
    eps: float
    activation: str
    theta: float | None = None
    prefix: int = 1
    registers: int = 0
    positions: str = "all"
    biases: frozenset[str] = frozenset({"q", "k", "v", "proj", "mlp", "patch"})
    gated: bool = False
    scales: bool = False
    linear_patches: bool = False
    bilinear: bool = False
    pre_norm: bool = False
    final_norm: bool = True
    map_pool: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image[0] // self.patch[0], self.image[1] // self.patch[1]

    @property
    def eva(self) -> bool:
        """Whether timm's Eva holds it, rather than its VisionTransformer."""
        return self.theta is not None


def assemble(source: Source, tower: Tower) -> dict[str, Tensor]:
    """The tower as timm's state dict, without a head.

    Raises:
        CheckpointError: a weight is missing, of another shape, or no finite floating-point numbers.
    """
    state = _embeddings(source, tower)
    for i in range(tower.depth):
        state |= {f"blocks.{i}.{name}": tensor for name, tensor in _block(source, tower, f"blocks.{i}").items()}
    norms = (("norm_pre", tower.pre_norm), ("norm", tower.final_norm))
    for name in (name for name, there in norms if there):
        state |= _named(name, _norm(source, name, tower.dim))
    return state | (_pool(source, tower) if tower.map_pool else {})


def _named(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def _norm(source: Source, name: str, dim: int) -> dict[str, Tensor]:
    return {kind: source.take(f"{name}.{kind}", dim) for kind in ("weight", "bias")}


def _linear(source: Source, name: str, out: int, into: int, *, bias: bool = True) -> dict[str, Tensor]:
    """Weight and bias, which is zero where the file has none."""
    found = source.take(f"{name}.bias", out) if bias else torch.zeros(out)
    return {"weight": source.take(f"{name}.weight", out, into), "bias": found}


def _embeddings(source: Source, tower: Tower) -> dict[str, Tensor]:
    dim, (high, wide) = tower.dim, tower.patch
    if tower.linear_patches:
        pixels = source.take("patch_embed.proj.weight", dim, high * wide * tower.channels)
        kernel = pixels.reshape(dim, high, wide, tower.channels).permute(0, 3, 1, 2).contiguous()
    else:
        kernel = source.take("patch_embed.proj.weight", dim, tower.channels, high, wide)
    state = {"patch_embed.proj.weight": kernel}
    if "patch" in tower.biases:
        state["patch_embed.proj.bias"] = source.take("patch_embed.proj.bias", dim)
    if tower.prefix > tower.registers:
        flat = "cls_token" in source and len(source.shape("cls_token")) == 1
        token = source.take("cls_token", *((dim,) if flat else (1, 1, dim)))
        state["cls_token"] = token.reshape(1, 1, dim)
    if tower.prefix - tower.registers == 2:
        state["dist_token"] = source.take("dist_token", 1, 1, dim)
    if tower.registers or "reg_token" in source:
        registers = source.take("reg_token", 1, tower.registers, dim)
        state |= {"reg_token": registers} if tower.registers else {}
    return state | _positions(source, tower, state)


def _positions(source: Source, tower: Tower, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Positions for the tower's grid, and what they change in the tokens before the patches."""
    if tower.positions == "none":
        return {}
    patches = tower.native[0] * tower.native[1]
    before = {"all": tower.prefix, "class": 1, "patches": 0}[tower.positions]
    flat = "pos_embed" in source and len(source.shape("pos_embed")) == 2
    shape = (before + patches, tower.dim) if flat else (1, before + patches, tower.dim)
    table = source.take("pos_embed", *shape).reshape(1, before + patches, tower.dim)
    if tower.grid != tower.native:
        table = _resized(table, before, tower)
    if tower.positions != "class":
        return {"pos_embed": table}
    # Registers have no positions: timm gives them to patches only, so the class token takes its own into itself.
    return {"pos_embed": table[:, 1:].contiguous(), "cls_token": state["cls_token"] + table[:, :1]}


def _resized(table: Tensor, before: int, tower: Tower) -> Tensor:
    from timm.layers import resample_abs_pos_embed

    resized: Tensor = resample_abs_pos_embed(
        table,
        new_size=list(tower.grid),
        old_size=list(tower.native),
        num_prefix_tokens=before,
        interpolation="bilinear" if tower.bilinear else "bicubic",
    )
    return resized


def _block(source: Source, tower: Tower, name: str) -> dict[str, Tensor]:
    dim = tower.dim
    state = {
        **_named("norm1", _norm(source, f"{name}.norm1", dim)),
        **_named("norm2", _norm(source, f"{name}.norm2", dim)),
    }
    state |= _attention(source, tower, f"{name}.attn")
    state |= _named("attn.proj", _linear(source, f"{name}.attn.proj", dim, dim, bias="proj" in tower.biases))
    state |= _named("mlp.fc1", _first(source, tower, f"{name}.mlp"))
    state |= _named("mlp.fc2", _linear(source, f"{name}.mlp.fc2", dim, tower.hidden, bias="mlp" in tower.biases))
    if tower.scales:
        for i in (1, 2):
            state[f"gamma_{i}" if tower.eva else f"ls{i}.gamma"] = source.take(f"{name}.ls{i}.gamma", dim)
    return state


def _attention(source: Source, tower: Tower, name: str) -> dict[str, Tensor]:
    """Query, key and value as one projection; Eva's has their biases apart, and none for the key."""
    parts = {part: _linear(source, f"{name}.{part}", tower.dim, tower.dim, bias=part in tower.biases) for part in "qkv"}
    state = {"attn.qkv.weight": torch.cat([parts[part]["weight"] for part in "qkv"])}
    if tower.eva and "k" not in tower.biases:
        if tower.biases & {"q", "v"}:
            state |= {f"attn.{part}_bias": parts[part]["bias"] for part in "qv"}
    elif tower.biases & {"q", "k", "v"}:
        state["attn.qkv.bias"] = torch.cat([parts[part]["bias"] for part in "qkv"])
    return state


def _first(source: Source, tower: Tower, name: str) -> dict[str, Tensor]:
    """The first layer of an FFN: the gates' rows before the others'."""
    bias = "mlp" in tower.biases
    packed = "fc1" if f"{name}.fc1.weight" in source else "up"
    if not tower.gated or packed == "fc1":
        rows = 2 * tower.hidden if tower.gated else tower.hidden
        return _linear(source, f"{name}.{packed}", rows, tower.dim, bias=bias)
    gate, up = (_linear(source, f"{name}.{part}", tower.hidden, tower.dim, bias=bias) for part in ("gate", "up"))
    return {kind: torch.cat([gate[kind], up[kind]]) for kind in ("weight", "bias")}


def _pool(source: Source, tower: Tower) -> dict[str, Tensor]:
    dim = tower.dim
    joined = _linear(source, "attn_pool.in_proj", 3 * dim, dim)
    return {
        "attn_pool.latent": source.take("attn_pool.latent", 1, 1, dim),
        **_named("attn_pool.q", {kind: tensor[:dim] for kind, tensor in joined.items()}),
        **_named("attn_pool.kv", {kind: tensor[dim:] for kind, tensor in joined.items()}),
        **_named("attn_pool.proj", _linear(source, "attn_pool.proj", dim, dim)),
        **_named("attn_pool.norm", _norm(source, "attn_pool.norm", dim)),
        **_named("attn_pool.mlp.fc1", _linear(source, "attn_pool.mlp.fc1", tower.hidden, dim)),
        **_named("attn_pool.mlp.fc2", _linear(source, "attn_pool.mlp.fc2", dim, tower.hidden)),
    }
