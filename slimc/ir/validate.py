"""Which IR models are well formed: shapes that fit, index sets inside their streams, counts that add up.

The pipeline validates after every pass, so that a defect is named where it arises and not where it is noticed.
"""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np

from slimc import ir
from slimc.errors import ValidationError
from slimc.ir.validate_parts import check_indices as _indices
from slimc.ir.validate_parts import check_linear as _linear
from slimc.ir.validate_parts import check_norm as _norm
from slimc.ir.validate_parts import check_shape as _shape
from slimc.ir.validate_readout import check_classifier, check_outputs


def validate(model: ir.Model) -> None:
    """Check `model`.

    Raises:
        ValidationError: it contradicts itself; the message names the node.
    """
    _embedding(model)
    selected = False
    for block, rows in zip(model.blocks, ir.block_rows(model), strict=True):
        _select(f"{block.name}.select", block.select, model, rows.before)
        _indices(f"{block.name}.live", block.live, rows.entering)
        selected = selected or block.select is not None
        if isinstance(block.attention, ir.Attention):
            _attention(f"{block.name}.attn", block.attention, model.dim, rows.entering)
            if selected and any(head.rotation is not None for head in block.attention.heads):
                raise ValidationError(f"{block.name}.attn: turns rows by their positions, which a selection chose")
        elif isinstance(block.attention, ir.Constant):
            _shape(f"{block.name}.attn", block.attention.vector, (model.dim,))
        if isinstance(block.mlp, ir.Mlp):
            _mlp(f"{block.name}.mlp", block.mlp, model.dim, rows.leaving)
        elif isinstance(block.mlp, ir.Constant):
            _shape(f"{block.name}.mlp", block.mlp.vector, (model.dim,))
        _gates(block, model.dim)
    check_classifier(model)
    check_outputs(model)
    if len({array.dtype for array in ir.arrays(model)}) > 1:
        raise ValidationError("model: its arrays have more than one floating-point type")


def _embedding(model: ir.Model) -> None:
    embedding = model.embedding
    height, width = model.patch
    if model.image[0] % height or model.image[1] % width:
        raise ValidationError(f"embedding: patches of {height}x{width} do not tile an image of {model.image}")
    if embedding.channels < 1:
        raise ValidationError("embedding: takes no channel of the image")
    channels = _stem(embedding.stem, embedding.channels)
    kernel = embedding.patch.weight.shape[2:]
    _shape("embedding.patch.weight", embedding.patch.weight, (model.dim, channels, *kernel))
    _shape("embedding.patch.bias", embedding.patch.bias, (model.dim,))
    _indices("embedding.patch.patches", embedding.patch.patches, model.grid[0] * model.grid[1])
    _shape("embedding.prefix_position", embedding.prefix_position, (model.prefix, model.dim))
    patches = ir.embedded_rows(model) - model.prefix
    _shape("embedding.patch_position", embedding.patch_position, (patches, model.dim))
    _shape("embedding.prefix", embedding.prefix, (model.prefix, model.dim))
    _norm("embedding.patch_norm", embedding.patch_norm, model.dim)
    _norm("embedding.norm", embedding.norm, model.dim)


def _stem(stem: tuple[ir.Convolution | ir.SoftSplit, ...], channels: int) -> int:
    """Check the stem, which gets `channels` channels, and return its output channels."""
    for i, stage in enumerate(stem):
        name = f"embedding.stem[{i}]"
        if isinstance(stage, ir.SoftSplit):
            channels *= stage.side**2
            if stage.performer is not None:
                channels = _performer(f"{name}.performer", stage.performer, channels)
            continue
        convolution, (out, _, *kernel) = stage, stage.weight.shape
        _shape(f"{name}.weight", convolution.weight, (out, channels, kernel[0], kernel[0]))
        if kernel[0] % 2 == 0 or convolution.stride < 1:
            raise ValidationError(f"{name}: needs an odd kernel and a positive stride")
        _shape(f"{name}.bias", convolution.bias, (out,))
        if convolution.norm is not None:
            for field in ("weight", "bias", "mean", "variance"):
                _shape(f"{name}.norm.{field}", getattr(convolution.norm, field), (out,))
        channels = out
    return channels


def _select(name: str, select: ir.SelectTokens | None, model: ir.Model, rows: int) -> None:
    if select is None:
        return
    if select.prefix != model.prefix or select.keep < 1 or rows <= select.prefix:
        raise ValidationError(f"{name}: keeps {select.keep} of {rows} rows, {select.prefix} of them prefix")
    scorer = select.scorer
    half = scorer.local.weight.shape[0]
    _norm(f"{name}.norm", scorer.norm, model.dim)
    _linear(f"{name}.local", scorer.local, half, model.dim)
    _linear(f"{name}.context", scorer.context, scorer.context.weight.shape[0], model.dim)
    features = half + scorer.context.weight.shape[0]
    for i, layer in enumerate(scorer.layers):
        _linear(f"{name}.layers[{i}]", layer, layer.weight.shape[0], features)
        features = layer.weight.shape[0]
    if not scorer.layers or features not in (1, 2):
        raise ValidationError(f"{name}: a score from {features} features, expected 1 or 2")


def _attention(name: str, attention: ir.Attention, dim: int, rows: int) -> None:
    _norm(f"{name}.norm", attention.norm, dim)
    for i, head in enumerate(attention.heads):
        d_qk, d_v = head.query.weight.shape[0], head.value.weight.shape[0]
        _linear(f"{name}.heads[{i}].query", head.query, d_qk, dim)
        _linear(f"{name}.heads[{i}].key", head.key, d_qk, dim)
        _linear(f"{name}.heads[{i}].value", head.value, d_v, dim)
        _shape(f"{name}.heads[{i}].output", head.output, (dim, d_v))
        _shape(f"{name}.heads[{i}].mask", head.mask, (d_qk,))
        _shape(f"{name}.heads[{i}].value_mask", head.value_mask, (d_v,))
        if head.rotation is not None:
            if d_qk % 2:
                raise ValidationError(f"{name}.heads[{i}].rotation: {d_qk} channels do not make pairs")
            for part in ("cos", "sin"):
                _shape(f"{name}.heads[{i}].rotation.{part}", getattr(head.rotation, part), (rows, d_qk // 2))
        for field, norm in (("query_norm", attention.query_norm), ("key_norm", attention.key_norm)):
            _norm(f"{name}.{field}", norm, d_qk)
    _norm(f"{name}.output_norm", attention.output_norm, sum(len(head.value.weight) for head in attention.heads))
    _shape(f"{name}.layer_scale", attention.layer_scale, (dim,))
    _shape(f"{name}.output_bias", attention.output_bias, (dim,))
    _shape(f"{name}.token_mask", attention.token_mask, (rows,))
    _indices(f"{name}.rows", attention.rows, rows)
    if attention.ghosts < 0:
        raise ValidationError(f"{name}.ghosts: {attention.ghosts} is negative")
    if attention.rows is not None and len(attention.rows) == 0 and attention.ghosts == 0 and attention.heads:
        raise ValidationError(f"{name}: a softmax over no key")
    if attention.groups is not None:
        _groups(name, attention)


def _groups(name: str, attention: ir.Attention) -> None:
    assert attention.groups is not None
    if sum(attention.groups) != len(attention.heads) or min(attention.groups, default=1) < 1:
        raise ValidationError(f"{name}.groups: {attention.groups} do not add up to {len(attention.heads)} heads")
    ends = list(itertools.accumulate(attention.groups))
    for start, end in zip([0, *ends], ends, strict=False):
        widths = {(h.query.weight.shape[0], h.value.weight.shape[0]) for h in attention.heads[start:end]}
        if len(widths) > 1:
            raise ValidationError(f"{name}.groups: heads {start} to {end - 1} have different widths {sorted(widths)}")


def _mlp(name: str, mlp: ir.Mlp, dim: int, rows: int) -> None:
    _norm(f"{name}.norm", mlp.norm, dim)
    width = mlp.up.weight.shape[0]
    _indices(f"{name}.inputs", mlp.inputs, dim)
    _linear(f"{name}.up", mlp.up, width, dim if mlp.inputs is None else len(mlp.inputs))
    _linear(f"{name}.down", mlp.down, dim, width)
    if mlp.gate is not None:
        _linear(f"{name}.gate", mlp.gate, *mlp.up.weight.shape)
    if mlp.activation not in get_args(ir.Activation):
        raise ValidationError(f"{name}.activation: {mlp.activation!r} is unknown")
    _norm(f"{name}.inner_norm", mlp.inner_norm, width)
    _shape(f"{name}.layer_scale", mlp.layer_scale, (dim,))
    _shape(f"{name}.mask", mlp.mask, (width,))
    _shape(f"{name}.token_mask", mlp.token_mask, (rows,))
    _indices(f"{name}.rows", mlp.rows, rows)


def _gates(block: ir.Block, dim: int) -> None:
    gates, name = block.gates or ir.Gates(), f"{block.name}.gates"
    count = 0 if gates.heads is None else gates.heads.weight.shape[0]
    for field, linear, out in (("attention", gates.attention, 1), ("mlp", gates.mlp, 1), ("heads", gates.heads, count)):
        if linear is not None:
            _linear(f"{name}.{field}", linear, out, dim)
    if gates.norm is not None:
        _norm(f"{name}.norm", gates.norm, dim)
    if gates.tokens is not None:
        _norm(f"{name}.tokens.norm", gates.tokens.norm, dim)
        _linear(f"{name}.tokens.score", gates.tokens.score, 1, dim)
        if isinstance(block.attention, ir.Attention) and not _same_norm(gates.tokens.norm, block.attention.norm):
            raise ValidationError(f"{name}.tokens.norm: not that of the block's attention, with which it is shared")
        if gates.tokens.capacity is not None and gates.tokens.capacity < 1:
            raise ValidationError(f"{name}.tokens.capacity: {gates.tokens.capacity} is less than one patch")
    _gate_numbers(block, count)
    if (
        block.gates is not None
        and block.live is not None
        and not np.array_equal(block.live, np.arange(len(block.live)))
    ):
        raise ValidationError(f"{name}: rows that are cut must be the last ones")
    if block.gates is not None and any(isinstance(b, ir.Constant) for b in (block.attention, block.mlp)):
        raise ValidationError(f"{name}: a constant branch depends on no image")
    branches = [branch for branch in (block.attention, block.mlp) if isinstance(branch, ir.Attention | ir.Mlp)]
    if block.gates is not None and any(b.rows is not None or b.token_mask is not None for b in branches):
        raise ValidationError(f"{name}: a block decides about tokens for each image or for all of them, not both")


def _same_norm(first: ir.Norm, second: ir.Norm) -> bool:
    same = type(first) is type(second) and first.eps == second.eps
    return same and all(np.array_equal(a, b) for a, b in zip(ir.arrays(first), ir.arrays(second), strict=True))


def _gate_numbers(block: ir.Block, count: int) -> None:
    if isinstance(block.attention, ir.Attention):
        for i, head in enumerate(block.attention.heads):
            if head.gate is not None and not 0 <= head.gate < count:
                raise ValidationError(f"{block.name}.attn.heads[{i}].gate: {head.gate} of {count} decisions")
    if isinstance(block.mlp, ir.Mlp):
        width, into = block.mlp.up.weight.shape
        for field, gates, size in (
            ("input_gates", block.mlp.input_gates, into),
            ("unit_gates", block.mlp.unit_gates, width),
        ):
            if gates is not None and (gates.shape != (size,) or not ((gates >= -1) & (gates < count)).all()):
                raise ValidationError(f"{block.name}.mlp.{field}: not {size} entries from -1 to {count - 1}")


def _performer(name: str, performer: ir.Performer, into: int) -> int:
    width: int = performer.value.weight.shape[0]
    _norm(f"{name}.norm1", performer.norm1, into)
    for part in ("key", "query", "value"):
        _linear(f"{name}.{part}", getattr(performer, part), width, into)
    _shape(f"{name}.features", performer.features, (performer.features.shape[0], width))
    _norm(f"{name}.norm2", performer.norm2, width)
    hidden = performer.up.weight.shape[0]
    for part, out, columns in (("output", width, width), ("up", hidden, width), ("down", width, hidden)):
        _linear(f"{name}.{part}", getattr(performer, part), out, columns)
    return width
