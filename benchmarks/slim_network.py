"""A compiled model in PyTorch: plain modules that compute what the IR says, as the plan of a target has it.

For models like those that ViT-Slim's become: head groups, ghosts, rows that end on the way; no selections, no gates, nothing
that a plain vision transformer may have besides. `float64_error` tells what was left out.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimc import ir
from slimc.emit.projection import stacked
from slimc.files.images import seeded_images
from slimc.ir.interpret.model import interpret
from slimc.targets.count import count_macs
from slimc.targets.plan import AttentionPlan, plan_model
from slimc.targets.target import Target, find_target

_ALIGNMENT = 8


class Attention(nn.Module):
    """The attention branch of the live rows: one product for queries, keys and values, then a batched attention a group.

    Where the plan computes no query that nobody reads, those of the live rows have a product of their own.
    """

    seen: Tensor | None
    score: Tensor | None

    def __init__(self, plan: AttentionPlan, rows: int, *, by_lse: bool) -> None:
        super().__init__()
        node, groups = plan.node, plan.groups
        assert node.token_mask is None
        assert all(head.mask is None and len(head.query.weight) == len(head.value.weight) for head in node.heads)
        biased = any(head.key.bias is not None or head.value.bias is not None for head in node.heads)
        self.by_lse = by_lse and node.ghosts > 0 and not biased
        self.ghosts, self.ghost_rows = node.ghosts, 0 if self.by_lse else plan.ghost_rows
        self.heads = [len(group) for group in groups]
        own = plan.projection != "qkv" and len(plan.live_rows) < rows
        kinds = ("key", "value") if own else ("query", "key", "value")
        linears = [getattr(head, kind) for group in groups for kind in kinds for head in group]
        self.widths = [sum(len(head.query.weight) for head in group) for group in groups]
        self.columns = [len(kinds) * width for width in self.widths]
        self.norm, self.joint = norm_of(node.norm), linear_of(stacked(linears))
        self.query = linear_of(stacked([head.query for group in groups for head in group])) if own else None
        output = np.concatenate([head.output for head in node.heads], axis=1) * node.residual_scale
        bias = None if node.output_bias is None else node.output_bias * node.residual_scale
        self.proj = linear_of(ir.Linear(output, bias))
        self.scale = node.scale
        seen = None if node.rows is None else np.isin(np.arange(rows), node.rows)[:, None]
        self.register_buffer("seen", None if seen is None else torch.from_numpy(seen))
        keys = np.concatenate([plan.key_rows, np.arange(rows, rows + self.ghost_rows)])
        self.keys, self.live = Rows(keys, rows + self.ghost_rows), Rows(plan.live_rows, rows + self.ghost_rows)
        score = torch.zeros(1, 1, 1, len(keys), dtype=torch.float64)  # as exact as whatever it is cast to
        score[..., len(plan.key_rows) :] = math.log(node.ghosts / self.ghost_rows) if self.ghost_rows else 0.0
        self.register_buffer("score", score if self.ghost_rows not in (0, node.ghosts) else None)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the live rows of the stream [B, N, C]; a row that is not seen counts as one of zeros."""
        n = self.norm(x) if self.seen is None else self.norm(x) * self.seen
        n = F.pad(n, (0, 0, 0, self.ghost_rows)) if self.ghost_rows else n
        queries = [None] * len(self.heads) if self.query is None else self.query(self.live(n)).split(self.widths, 2)
        mixed = []
        for piece, query, heads in zip(self.joint(n).split(self.columns, 2), queries, self.heads, strict=True):
            parts = piece.unflatten(2, (2 if self.query else 3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            q = self.live(parts[0]) if query is None else query.unflatten(2, (heads, -1)).transpose(1, 2)
            mixed.append(self._mix(q, self.keys(parts[-2]), self.keys(parts[-1])).transpose(1, 2).flatten(2))
        return self.proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed, 2))  # type: ignore[no-any-return]

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.by_lse:
            bias = None if self.score is None else self.score.expand(len(q), q.shape[1], q.shape[2], -1)
            return F.scaled_dot_product_attention(q, k, v, bias, scale=self.scale)
        aten = torch.ops.aten
        if q.is_cuda:
            mixed, lse = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, scale=self.scale)[:2]
        else:
            mixed, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=self.scale)
        # Ghosts score 0 and give 0: of e^lse + ghosts, e^lse is the share of the others.
        share = torch.sigmoid(lse.reshape(q.shape[:3]) - math.log(self.ghosts))
        return mixed * share[..., None].to(mixed.dtype)  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """The FFN branch."""

    seen: Tensor | None

    def __init__(self, node: ir.Mlp, rows: int) -> None:
        super().__init__()
        assert node.token_mask is None
        assert node.mask is None
        self.norm, self.up, self.down = norm_of(node.norm), linear_of(node.up), linear_of(node.down)
        self.scale, self.inputs = node.residual_scale, Rows(node.inputs, len(node.norm.weight), axis=-1)
        seen = None if node.rows is None else np.isin(np.arange(rows), node.rows)[:, None]
        self.register_buffer("seen", None if seen is None else torch.from_numpy(seen))

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the rows of the stream [B, N, C]."""
        n = self.norm(x) if self.seen is None else self.norm(x) * self.seen
        added = self.down(F.gelu(self.up(self.inputs(n))))
        return added if self.scale == 1.0 else added * self.scale  # type: ignore[no-any-return]


class Rows(nn.Module):
    """Rows of the last axis but one, or entries of another: all, the first, or those of an index."""

    rows: Tensor | None

    def __init__(self, rows: ir.IndexArray | None, count: int, axis: int = -2) -> None:
        super().__init__()
        self.axis, self.first = axis, count if rows is None else len(rows)
        in_front = rows is None or np.array_equal(rows, np.arange(len(rows)))
        self.all = in_front and self.first == count
        self.register_buffer("rows", None if rows is None or in_front else torch.from_numpy(np.asarray(rows)))

    def forward(self, x: Tensor) -> Tensor:
        """They."""
        if self.all:
            return x
        return x.narrow(self.axis, 0, self.first) if self.rows is None else x.index_select(self.axis, self.rows)


class Block(nn.Module):
    """x = x[live] + attention(x); x = x + mlp(x)."""

    def __init__(self, block: ir.Block, plan: AttentionPlan | None, rows: ir.BlockRows, *, by_lse: bool) -> None:
        super().__init__()
        assert block.select is None
        assert block.gates is None
        self.live = Rows(block.live, rows.entering)
        self.attention = Attention(plan, rows.entering, by_lse=by_lse) if plan else constant_of(block.attention)
        self.mlp = Mlp(block.mlp, rows.leaving) if isinstance(block.mlp, ir.Mlp) else constant_of(block.mlp)

    def forward(self, x: Tensor) -> Tensor:
        """The stream [B, N, C] behind the block."""
        y = self.live(x)
        for branch, entering in ((self.attention, x), (self.mlp, None)):
            if isinstance(branch, nn.Module):
                y = y + branch(y if entering is None else entering)
            elif branch is not None:
                y = y + branch
        return y  # type: ignore[no-any-return]


class Network(nn.Module):
    """A model in IR, of the kind that ViT-Slim's become, as PyTorch computes it; `by_lse` does without ghost rows.

    Its parameters are as exact as the model's: cast it to the precision that is wanted.
    """

    def __init__(self, model: ir.Model, target: Target, *, by_lse: bool = False) -> None:
        super().__init__()
        embedding, end = model.embedding, model.classifier
        assert not embedding.stem
        assert end.auxiliary is None
        self.patch, self.grid = model.patch, model.grid
        weight = embedding.patch.weight.reshape(model.dim, -1)
        self.embed = linear_of(ir.Linear(weight, embedding.patch.bias))
        patches, positions = embedding.patch.patches, embedding.patch_position
        self.patches = Rows(patches, model.grid[0] * model.grid[1])
        places = 0.0 if embedding.prefix_position is None else embedding.prefix_position.astype(np.float64)
        self.prefix = constant_of(embedding.prefix + places)
        self.position = constant_of(np.zeros((1, model.dim), np.float32) if positions is None else positions)
        plans = zip(model.blocks, plan_model(model, target), strict=True)
        self.blocks = nn.ModuleList(Block(block, plan.attention, plan.rows, by_lse=by_lse) for block, plan in plans)
        self.norm, self.heads = norm_of(end.norm), nn.ModuleList(map(linear_of, end.heads))
        self.pre_logits = None if end.pre_logits is None else linear_of(end.pre_logits)
        self.ends, self.scale = end.rows, end.scale

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes]."""
        # A product: cuDNN's convolution of float16 images takes an H100 several times as long.
        (down, across), (height, width) = self.grid, self.patch
        cells = images.reshape(len(images), -1, down, height, across, width).permute(0, 2, 4, 1, 3, 5)
        pixels = cells.reshape(len(images), down * across, -1)
        x = self.embed(self.patches(pixels)) + self.position
        x = torch.cat((self.prefix.expand(len(x), -1, -1), x), 1)
        for block in self.blocks:
            x = block(x)
        features = [self.norm(x[:, row]) for row in self.ends]
        if self.pre_logits is not None:
            features = [torch.tanh(self.pre_logits(each)) for each in features]
        first, *others = (head(each) for head, each in zip(self.heads, features, strict=True))
        logits: Tensor = sum(others, start=first)
        return logits if self.scale == 1.0 else logits * self.scale


def float64_error(network: nn.Module, model: ir.Model) -> float:
    """How far `network` is in float64 from what `model` means, as a share of the largest logit."""
    images = seeded_images(1, model.image, 2, model.embedding.channels)
    expected = interpret(model, images)
    with torch.no_grad():
        logits = copy.deepcopy(network).double()(torch.from_numpy(images).double()).numpy()
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def norm_of(norm: object) -> nn.LayerNorm:
    """`norm`, a LayerNorm, in PyTorch."""
    assert isinstance(norm, ir.LayerNorm)
    layer = nn.LayerNorm(len(norm.weight), eps=norm.eps)
    fill(layer, ir.Linear(norm.weight, norm.bias))
    return layer


def linear_of(linear: ir.Linear) -> nn.Linear:
    """`linear` in PyTorch."""
    layer = nn.Linear(linear.weight.shape[1], linear.weight.shape[0], bias=linear.bias is not None)
    fill(layer, linear)
    return layer


def fill(layer: nn.Module, values: ir.Linear) -> None:
    """Give `layer` its weight and bias."""
    layer.register_parameter("weight", constant_of(values.weight))
    layer.register_parameter("bias", None if values.bias is None else constant_of(values.bias))


def constant_of(value: ir.FloatArray | ir.Constant | ir.Attention | ir.Mlp | None) -> Any:
    """A parameter that is not trained; none for a branch that adds nothing."""
    if value is None:
        return None
    assert isinstance(value, (np.ndarray, ir.Constant))
    array = value.vector if isinstance(value, ir.Constant) else value
    return nn.Parameter(torch.from_numpy(array.copy()), requires_grad=False)


def aligned(model: ir.Model) -> ir.Model:
    """`model` with hidden units of zeros, so that the widths of its FFNs are multiples of what tensor cores like."""
    blocks = []
    for block in model.blocks:
        mlp = block.mlp
        if isinstance(mlp, ir.Mlp):
            missing = -len(mlp.up.weight) % _ALIGNMENT
            bias = None if mlp.up.bias is None else np.pad(mlp.up.bias, (0, missing))
            up = ir.Linear(np.pad(mlp.up.weight, ((0, missing), (0, 0))), bias)
            mlp = replace(mlp, up=up, down=replace(mlp.down, weight=np.pad(mlp.down.weight, ((0, 0), (0, missing)))))
        blocks.append(replace(block, mlp=mlp))
    return replace(model, blocks=tuple(blocks))


def uniform_twin(dense: ir.Model, macs: int) -> ir.Model:
    """The first channels of every head and FFN of `dense`, in every block as many, so that about `macs` are left."""
    generic = find_target("generic")
    heads = dense.blocks[0].attention.heads  # type: ignore[union-attr]
    full = len(heads[0].query.weight)
    hidden = len(dense.blocks[0].mlp.up.weight)  # type: ignore[union-attr]
    width = max(8, round(full * macs / count_macs(dense, generic) / 8) * 8)
    none, one = (count_macs(_cut(dense, width, units), generic) for units in (0, 1))
    return _cut(dense, width, min(hidden, max(64, round((macs - none) / (one - none) / 64) * 64)))


def _cut(dense: ir.Model, width: int, hidden: int) -> ir.Model:
    def first(linear: ir.Linear, count: int) -> ir.Linear:
        return ir.Linear(linear.weight[:count], None if linear.bias is None else linear.bias[:count])

    blocks = []
    for block in dense.blocks:
        attention, mlp = block.attention, block.mlp
        assert isinstance(attention, ir.Attention)
        assert isinstance(mlp, ir.Mlp)
        heads = tuple(
            replace(
                head,
                query=first(head.query, width),
                key=first(head.key, width),
                value=first(head.value, width),
                output=head.output[:, :width],
            )
            for head in attention.heads
        )
        mlp = replace(mlp, up=first(mlp.up, hidden), down=replace(mlp.down, weight=mlp.down.weight[:, :hidden]))
        blocks.append(replace(block, attention=replace(attention, heads=heads), mlp=mlp))
    return replace(dense, blocks=tuple(blocks))
