"""Reading the blocks of timm's vision transformers: attention and FFN, by their submodules and shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from slimc import ir
from slimc.errors import CheckpointError
from slimc.models.timm_layers import (
    activation,
    array,
    check_idle,
    check_parts,
    expect,
    is_identity,
    linear,
    maybe,
    norm,
)

_ATTENTION_PARTS = (
    "qkv", "q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop",
)  # fmt: skip
_ATTENTIONS = ("Attention", "EvaAttention", "AttentionRope")
_MLPS = ("Mlp", "GluMlp", "SwiGLU")


def read_block(block: Any, path: str, rotations: tuple[ir.Rotation, ...] | None) -> ir.Block:  # noqa: ANN401
    """A block, whose heads' queries and keys `rotations` turn: one a head, or one for all."""
    kind = expect(block, path, ("Block", "EvaBlock"))
    parts = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")
    check_parts(block, path, parts, ("gamma_1", "gamma_2") if kind == "EvaBlock" else ())
    check_idle(block, path, ("drop_path1", "drop_path2"))
    if kind == "EvaBlock":
        scales = [maybe(getattr(block, name), f"{path}.{name}") for name in ("gamma_1", "gamma_2")]
    else:
        scales = [_layer_scale(getattr(block, name), f"{path}.{name}") for name in ("ls1", "ls2")]
    before, behind = (required_norm(getattr(block, name), f"{path}.{name}") for name in ("norm1", "norm2"))
    attention = read_attention(block.attn, f"{path}.attn", before, rotations)
    mlp = read_mlp(block.mlp, f"{path}.mlp", behind)
    return ir.Block(path, replace(attention, layer_scale=scales[0]), replace(mlp, layer_scale=scales[1]))


def required_norm(module: nn.Module, path: str) -> ir.Norm:
    """A norm that must be there.

    Raises:
        CheckpointError: it is not.
    """
    found = norm(module, path)
    if found is None:
        raise CheckpointError(f"{path}: is an identity; expected a norm in front of the branch")
    return found


def _layer_scale(module: nn.Module, path: str) -> ir.FloatArray | None:
    if is_identity(module):
        return None
    expect(module, path, ("LayerScale",))
    check_parts(module, path, (), ("gamma",))
    return array(module.gamma, f"{path}.gamma")  # type: ignore[arg-type]


def read_attention(
    attention: Any,  # noqa: ANN401
    path: str,
    before: ir.Norm,
    rotations: tuple[ir.Rotation, ...] | None,
) -> ir.Attention:
    """An attention, with the norm `before` it."""
    expect(attention, path, _ATTENTIONS)
    check_parts(attention, path, _ATTENTION_PARTS, ("q_bias", "k_bias", "v_bias"))
    check_idle(attention, path, ("attn_drop", "proj_drop"))
    if getattr(attention, "gate", None) is not None:
        raise CheckpointError(f"{path}.gate: gates the heads' outputs, which slimc does not know; expected none")
    if getattr(attention, "num_kv_groups", 1) != 1:
        raise CheckpointError(
            f"{path}.num_kv_heads: {attention.num_kv_heads} heads of keys serve {attention.num_heads} of queries "
            "(grouped-query attention), which slimc does not know; expected as many"
        )
    query, key, value = _projections(attention, path)
    proj = linear(attention.proj, f"{path}.proj")
    heads, rows = int(attention.num_heads), len(query.weight)
    if rows % heads or proj.weight.shape[1] != len(value.weight) or len(key.weight) != rows:
        raise CheckpointError(f"{path}: q, k, v and proj of {heads} heads do not fit each other")
    width = rows // heads
    if rotations is not None and 2 * rotations[0].cos.shape[1] != width:
        raise CheckpointError(
            f"{path}: {2 * rotations[0].cos.shape[1]} channels of a head are turned by position, of {width}; expected all "
            "of them"
        )
    order = None if rotations is None else channel_order(attention, width)
    fused = bool(getattr(attention, "fused_attn", False))
    return ir.Attention(
        norm=before,
        heads=_heads(query, key, value, proj.weight, heads, rotations, order),
        output_bias=proj.bias,
        scale=float(width**-0.5) if fused else float(attention.scale),
        query_norm=_ordered(norm(attention.q_norm, f"{path}.q_norm"), order),
        key_norm=_ordered(norm(attention.k_norm, f"{path}.k_norm"), order),
        output_norm=norm(attention.norm, f"{path}.norm"),
    )


def _projections(attention: Any, path: str) -> tuple[ir.Linear, ir.Linear, ir.Linear]:  # noqa: ANN401
    """Queries, keys and values of all heads; a key bias of zeros is none."""
    if attention.qkv is not None:
        joined = linear(attention.qkv, f"{path}.qkv")
        weights = np.split(joined.weight, 3)
        biases = [None] * 3 if joined.bias is None else np.split(joined.bias, 3)
        if getattr(attention, "q_bias", None) is not None:
            if joined.bias is not None:
                raise CheckpointError(f"{path}.qkv.bias: stands beside q_bias; expected one of them")
            biases = [array(getattr(attention, f"{kind}_bias"), f"{path}.{kind}_bias") for kind in "qkv"]
        query, key, value = (ir.Linear(w, b) for w, b in zip(weights, biases, strict=True))
    else:
        query, key, value = (linear(getattr(attention, f"{kind}_proj"), f"{path}.{kind}_proj") for kind in "qkv")
    if key.bias is not None and not key.bias.any():
        key = ir.Linear(key.weight)
    return query, key, value


def channel_order(attention: Any, width: int) -> ir.IndexArray | None:  # noqa: ANN401
    """The order in which the `width` channels of turned queries and keys are taken, so that channel c pairs with c + d / 2.

    None where they pair so already.
    """
    if getattr(attention, "rotate_half", False):
        return None
    order: ir.IndexArray = np.arange(width).reshape(-1, 2).T.ravel()
    return order


def _ordered(norm: ir.Norm | None, order: ir.IndexArray | None) -> ir.Norm | None:
    if norm is None or order is None:
        return norm
    norm = replace(norm, weight=norm.weight[order])
    return replace(norm, bias=norm.bias[order]) if isinstance(norm, ir.LayerNorm) else norm


def _heads(
    query: ir.Linear,
    key: ir.Linear,
    value: ir.Linear,
    output: ir.FloatArray,
    count: int,
    rotations: tuple[ir.Rotation, ...] | None,
    order: ir.IndexArray | None,
) -> tuple[ir.Head, ...]:
    """The heads; q and k have their channels in this `order`, or share memory with the module where there is none."""
    heads, d_qk, d_v = [], len(query.weight) // count, len(value.weight) // count
    for i in range(count):
        asked = slice(i * d_qk, (i + 1) * d_qk) if order is None else i * d_qk + order
        own = slice(i * d_v, (i + 1) * d_v)
        operands = (ir.keep_outputs(query, asked), ir.keep_outputs(key, asked), ir.keep_outputs(value, own))
        rotation = None if rotations is None else rotations[i % len(rotations)]
        heads.append(ir.Head(*operands, output[:, own], rotation=rotation))
    return tuple(heads)


def read_mlp(mlp: Any, path: str, before: ir.Norm) -> ir.Mlp:  # noqa: ANN401
    """An FFN, with the norm `before` it."""
    kind = expect(mlp, path, _MLPS)
    first = ("fc1_g", "fc1_x") if kind == "SwiGLU" else ("fc1",)
    check_parts(mlp, path, (*first, "act", "drop1", "norm", "fc2", "drop2"))
    check_idle(mlp, path, ("drop1", "drop2"))
    gate: ir.Linear | None = None
    if kind == "SwiGLU":
        gate, up = (linear(getattr(mlp, name), f"{path}.{name}") for name in first)
    else:
        up = linear(mlp.fc1, f"{path}.fc1")
    if kind == "GluMlp":
        if mlp.chunk_dim != -1:
            raise CheckpointError(f"{path}: works on maps; expected rows")
        middle = len(up.weight) // 2
        halves = [ir.keep_outputs(up, half) for half in (slice(None, middle), slice(middle, None))]
        up, gate = halves if mlp.gate_last else halves[::-1]
    return ir.Mlp(
        norm=before,
        up=up,
        down=linear(mlp.fc2, f"{path}.fc2"),
        activation=activation(mlp.act, f"{path}.act"),
        gate=gate,
        inner_norm=norm(mlp.norm, f"{path}.norm"),
    )
