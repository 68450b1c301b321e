"""ViT-Slim's network once more, straight from its definition and in float64: what the front end is held against.

Takes a state dict, so that neither masks nor weights pass through the code under test.
"""

from __future__ import annotations

import math

import numpy as np

from slimc.ir.interpret.linear import Float64
from tests.checkpoints import Recipe, State

_erf = np.vectorize(math.erf, otypes=[np.float64])


def soft_masks(state: State, recipe: Recipe) -> list[tuple[Float64, Float64, Float64]]:
    """Attention [H, d], FFN [F] and patch [T] factors of every layer before binarisation."""
    shape = (recipe.heads, recipe.dim // recipe.heads)
    return [
        (np.broadcast_to(attn, shape), mlp, np.tanh(patch.astype(np.float64)))
        for attn, mlp, patch in _zetas(state, recipe)
    ]


def hard_masks(
    state: State, recipe: Recipe, budgets: tuple[float, float, float]
) -> list[tuple[Float64, Float64, Float64]]:
    """The same after binarisation with budgets for attention, FFN and patches."""
    zetas = [(attn, mlp, np.tanh(patch)) for attn, mlp, patch in _zetas(state, recipe)]
    limits = []
    for kind, budget in enumerate(budgets):
        entries = sorted(float(x) for layer in zetas for x in layer[kind].ravel())
        limits.append(entries[int((1.0 - budget) * len(entries))])
    masks, later = [], np.zeros(recipe.tokens, bool)
    for attn, mlp, patch in reversed(zetas):
        later = later | (patch >= limits[2])
        heads = np.broadcast_to(attn >= limits[0], (recipe.heads, recipe.dim // recipe.heads))
        masks.append((heads.astype(float), (mlp >= limits[1]).astype(float), later.astype(float)))
    return masks[::-1]


def _zetas(state: State, recipe: Recipe) -> list[tuple[Float64, Float64, Float64]]:
    found = []
    for layer in range(recipe.depth):
        names = (f"blocks.{layer}.attn.zeta", f"blocks.{layer}.mlp.zeta", f"blocks.{layer}.attn.patch_zeta")
        attn, mlp, patch = (state[name].numpy() for name in names)
        found.append((attn[0, 0, :, 0, :], mlp[0, 0], patch[0, :, 0]))
    return found


def forward(
    state: State,
    recipe: Recipe,
    masks: list[tuple[Float64, Float64, Float64]],
    images: Float64,
    scale: float | None = None,
) -> Float64:
    """Logits [B, classes] of `images`."""
    w = {key: tensor.double().numpy() for key, tensor in state.items()}

    def linear(name: str, x: Float64) -> Float64:
        y: Float64 = x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", np.zeros(1))
        return y

    def norm(name: str, x: Float64) -> Float64:
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        y: Float64 = centred / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]
        return y

    heads, width = recipe.heads, recipe.dim // recipe.heads
    scale = width**-0.5 if scale is None else scale
    batch, tokens = len(images), recipe.tokens
    prefix = [w["cls_token"][0]] + ([w["dist_token"][0]] if recipe.distilled else [])
    rows = np.stack([_embed(w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], image) for image in images])
    x = np.concatenate([np.broadcast_to(np.concatenate(prefix), (batch, len(prefix), recipe.dim)), rows], 1)
    x = x + w["pos_embed"]
    for layer, (z, f, m) in enumerate(masks):
        name = f"blocks.{layer}"
        n = norm(f"{name}.norm1", x) * m[:, None]
        qkv = linear(f"{name}.attn.qkv", n).reshape(batch, tokens, 3, heads, width).transpose(2, 0, 3, 1, 4)
        q, k, v = qkv * z[:, None, :]
        scores = np.exp(q @ k.transpose(0, 1, 3, 2) * scale)
        a = scores / scores.sum(-1, keepdims=True) @ v
        x = x + linear(f"{name}.attn.proj", a.transpose(0, 2, 1, 3).reshape(batch, tokens, recipe.dim))
        hidden = linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x) * m[:, None])
        x = x + linear(f"{name}.mlp.fc2", hidden * 0.5 * (1 + _erf(hidden / math.sqrt(2))) * f)
    x = norm("norm", x)
    if recipe.distilled:
        return (linear("head", x[:, 0]) + linear("head_dist", x[:, 1])) / 2
    features = np.tanh(linear("pre_logits.fc", x[:, 0])) if recipe.representation else x[:, 0]
    return linear("head", features)


def _embed(weight: Float64, bias: Float64, image: Float64) -> Float64:
    """Rows [patches, C] of one image, patch by patch."""
    height, width = weight.shape[2:]
    corners = [(y, x) for y in range(0, image.shape[1], height) for x in range(0, image.shape[2], width)]
    cells = [image[:, y : y + height, x : x + width] for y, x in corners]
    return np.stack([np.tensordot(weight, cell, 3) + bias for cell in cells])
