"""A model in IR as a PyTorch module, trainable, and the model in IR of such a module after training.

Names in the `state_dict` are the checkpoint's (timm's), as far as the IR knows them:

    cls_token, pos_embed.prefix, pos_embed.patches      prefix tokens [P, C], positions of both
    patch_embed.proj, patch_embed.norm, norm_pre        and patch_embed.stem.conv1, .bn1, .split1 in front
    blocks.3.norm1, blocks.3.norm2, .ls1.gamma, .ls2.gamma
    blocks.3.attn.qkv                                   queries of all heads, their keys, their values
    blocks.3.attn.proj, .q_norm, .k_norm, .norm         .norm is that of the heads side by side
    blocks.3.mlp.fc1, .fc2, .norm                       of a gated FFN fc1 is the gate, then what it multiplies
    blocks.3.attn.bias, blocks.3.mlp.bias               of a branch that adds the same to every row
    blocks.3.gates..., blocks.3.select...               what decides for an image: not trained
    norm, fc_norm, pre_logits.fc, head, head_dist, aux_head
    attn_pool.query, .kv, .proj, .norm, .mlp.fc1, .mlp.fc2

Heads may have any widths: `qkv` and `proj` have them one after the other, in the order of the network's heads.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from slimc import ir
from slimc.pytorch.block import Block
from slimc.pytorch.embedding import PatchEmbed, Positions
from slimc.pytorch.layers import freeze, norm_of, norm_to_ir, normalised, parameter, read
from slimc.pytorch.readout import Readout
from slimc.targets.plan import BlockPlan, emitted_blocks, plan_block, plan_model
from slimc.targets.target import Target


class VisionTransformer(Readout):
    """What `model` computes, as the plan of `target` has it: images [B, channels, height, width] to its outputs.

    The result is a tensor where there is one output, else tensors by name. Parameters have the type of the model's arrays.
    """

    def __init__(self, model: ir.Model, target: Target) -> None:
        super().__init__(model)
        embedding = model.embedding
        self.model = replace(
            model, embedding=_without_weights(embedding), blocks=(), classifier=ir.Classifier(None, (), ())
        )
        self.channels = embedding.channels
        self.array_type = embedding.patch.weight.dtype
        self.cls_token = parameter(embedding.prefix) if model.prefix else None
        self.pos_embed, self.norm_pre = Positions(embedding), norm_of(embedding.norm)
        self.patch_embed = PatchEmbed(embedding, model.grid)
        blocks, hidden = [], False
        for block, plan in zip(model.blocks, plan_model(model, target), strict=True):
            hidden = hidden or (block.select is not None and not block.select.drop)
            blocks.append(_block(block, plan, model, target, rows_hidden=hidden))
        self.blocks = nn.ModuleList(blocks)
        self.needed = len(emitted_blocks(model))
        freeze(*self.blocks[self.needed :])
        self.eval()

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """The outputs of `images`."""
        found = self.by_name(images)
        return next(iter(found.values())) if len(found) == 1 else found

    def by_name(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs of `images` by name, however many there are."""
        x, kept = self.embed(images), None
        found: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks[: self.needed]):
            x, kept = block(x, kept)
            found |= self.read_block(i, x)
        found |= self.read_out(x, kept)
        return {output.name: found[output.name] for output in self.outputs}

    def embed(self, images: Tensor) -> Tensor:
        """The first stream [B, P + patches, C]."""
        x = self.pos_embed.patch_rows(self.patch_embed(images))
        if self.cls_token is not None:
            prefix = self.pos_embed.prefix_rows(self.cls_token)
            x = torch.cat((prefix.expand(x.shape[0], -1, -1), x), 1)
        return normalised(self.norm_pre, x)

    def to_ir(self) -> ir.Model:
        """The model with the weights of now, in the type that they had."""
        dtype, embedding = self.array_type, self.model.embedding
        positions = self.pos_embed
        if self.cls_token is not None:
            place = None if positions.prefix is None else read(positions.prefix, dtype)
            embedding = replace(embedding, prefix=read(self.cls_token, dtype), prefix_position=place)
        embedding = replace(
            embedding,
            patch=self.patch_embed.to_ir(dtype),
            patch_position=None if positions.patches is None else read(positions.patches, dtype),
            stem=self.patch_embed.stem.to_ir(dtype),
            patch_norm=norm_to_ir(self.patch_embed.norm, dtype),
            norm=norm_to_ir(self.norm_pre, dtype),
        )
        blocks = tuple(block.to_ir(dtype) for block in self.blocks if isinstance(block, Block))
        return replace(self.model, embedding=embedding, blocks=blocks, classifier=self.classifier_to_ir(dtype))


def _without_weights(embedding: ir.Embedding) -> ir.Embedding:
    """`embedding` with nothing where the network has weights."""
    patch = replace(embedding.patch, weight=embedding.patch.weight[:0], bias=None)
    kept = replace(embedding, patch=patch, patch_position=None, stem=(), patch_norm=None, norm=None)
    return replace(kept, prefix=embedding.prefix[:0], prefix_position=None) if len(embedding.prefix) else kept


def _block(block: ir.Block, plan: BlockPlan, model: ir.Model, target: Target, *, rows_hidden: bool) -> Block:
    """The module of `block`. Where an image uses few rows its branches get those only, in an order of their own.

    So not where some rows are hidden, or where patches are among the rows that outlive a block in which others end.
    """
    tokens = None if block.gates is None else block.gates.tokens
    if block.gates is None or tokens is None or plan.branch_rows == plan.rows.entering:
        return Block(block, plan, model.prefix, model.dim, gathers=False)
    if not rows_hidden and (block.live is None or len(block.live) <= model.prefix):
        return Block(block, plan, model.prefix, model.dim, gathers=True)
    unlimited = replace(block, gates=replace(block.gates, tokens=replace(tokens, capacity=None)))
    plan = plan_block(unlimited, plan.rows, model.prefix, target, rows_hidden=rows_hidden)
    return Block(block, plan, model.prefix, model.dim, gathers=False)
