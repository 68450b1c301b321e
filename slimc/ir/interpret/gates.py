"""What a block decides for each image, in float64 NumPy: the meaning of `ir.Gates`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slimc.ir import Gates, IndexArray, Linear, TokenGate
from slimc.ir.interpret.linear import Float64, apply, normalise


@dataclass(frozen=True, eq=False)
class Decisions:
    """The decisions of one block on B images, 0 or 1: attention [B], mlp [B], heads [B, G], tokens [B, N]; else one.

    `margin` [B] is the least distance of a logit from its threshold.
    """

    attention: Float64
    mlp: Float64
    heads: Float64
    tokens: Float64
    margin: Float64


def undecided(x: Float64) -> Decisions:
    """The decisions of a block without gates on the stream `x` [B, N, C]."""
    one = np.ones(len(x))
    return Decisions(one, one, np.ones((len(x), 0)), np.ones(x.shape[:2]), np.full(len(x), np.inf))


def decide(gates: Gates, x: Float64, prefix: int) -> Decisions:
    """What `gates` decide on the stream `x` [B, N, C] that enters their block; the first `prefix` rows are always used."""
    p = x[:, 0] if gates.norm is None else normalise(gates.norm, x[:, 0])
    logits = [_logits(linear, p) for linear in (gates.attention, gates.mlp, gates.heads)]
    tokens, token_margin = np.ones(x.shape[:2]), np.full((len(x), 1), np.inf)
    if gates.tokens is not None:
        score = apply(gates.tokens.score, normalise(gates.tokens.norm, x[:, prefix:]))[..., 0]
        tokens[:, prefix:] = choose(gates.tokens, score)
        token_margin = np.abs(score - gates.tokens.threshold)
    margin = np.concatenate([*(np.abs(logit) for logit in logits), token_margin], axis=1).min(1, initial=np.inf)
    attention, mlp, heads = ((logit > 0).astype(np.float64) for logit in logits)
    one = np.ones(len(x))
    return Decisions(
        attention[:, 0] if gates.attention else one, mlp[:, 0] if gates.mlp else one, heads, tokens, margin
    )


def _logits(linear: Linear | None, p: Float64) -> Float64:
    return np.ones((len(p), 0)) if linear is None else apply(linear, p)


def choose(gate: TokenGate, score: Float64) -> Float64:
    """Which patches [B, patches] are used, given their scores: above the threshold, and no more than the capacity."""
    used = score > gate.threshold
    if gate.capacity is not None:
        order = np.argsort(-score, axis=1, kind="stable")
        np.put_along_axis(used, order[:, gate.capacity :], False, axis=1)
    return used.astype(np.float64)


def channel_gates(numbers: IndexArray | None, decided: Decisions | None) -> Float64 | float:
    """What multiplies channels that obey the decisions `numbers`: [B, 1, channels], or 1."""
    if numbers is None or decided is None:
        return 1.0
    return np.where(numbers < 0, 1.0, decided.heads[:, numbers])[:, None]
