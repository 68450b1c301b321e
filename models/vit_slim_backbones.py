"""ViT-Slim's masks over any plain vision transformer that timm has: timm's keys plus zetas, and timm's name of the network.

Zetas and budgets mean what they mean on DeiT (`slimc.models.vit_slim_masks`): one zeta a channel of q, k and v at once, a
hidden unit, and a row of the stream, prefix rows included. A pool reads the patches that the last block sees.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from slimc import ir
from slimc.errors import CheckpointError
from slimc.files.checkpoint import Checkpoint
from slimc.models.network_masks import BlockMasks, NetworkMasks, check_rows
from slimc.models.options import VitSlimOptions
from slimc.models.system import Network, System
from slimc.models.timm_files import from_checkpoint, stated_architecture
from slimc.models.timm_network import build, under_masks
from slimc.models.vit_slim import overridden, read_budgets
from slimc.models.vit_slim_masks import Masks, Zetas, binary_masks
from slimc.models.weights import Weights

_ZETAS = (".attn.zeta", ".attn.patch_zeta", ".mlp.zeta")


def has_backbone(checkpoint: Checkpoint, options: VitSlimOptions) -> bool:
    """Whether the network below the zetas is another than the research code's DeiT."""
    if options.arch is not None:
        return True
    name = stated_architecture(checkpoint.args)
    return name is not None and not name.startswith("deit") and _is_timms(name)


def _is_timms(name: str) -> bool:
    try:
        import timm
    except ImportError:
        return False
    return bool(timm.is_model(name.partition(".")[0]))


def load(checkpoint: Checkpoint, options: VitSlimOptions, system: System) -> Network:
    """Read a ViT-Slim checkpoint over one of timm's networks.

    Raises:
        CheckpointError: the weights are not those of the network, or its zetas do not fit it.
        BudgetError: the budgets are missing or cannot be used.
        OptionError: an option cannot be used.
    """
    zetas = {key: tensor for key, tensor in checkpoint.state.items() if key.endswith(_ZETAS)}
    plain = replace(checkpoint, state={key: t for key, t in checkpoint.state.items() if key not in zetas})
    source = from_checkpoint(plain, options)
    network = build(source, options, system)
    model = network.dense
    heads, width = _geometry(model)
    weights = Weights(checkpoint.path, zetas)
    read = [_zetas(weights, block, i, ir.embedded_rows(model), heads, width) for i, block in enumerate(model.blocks)]
    weights.finish()
    budgets = read_budgets(checkpoint.path, checkpoint.args, options)
    found, thresholds = binary_masks(read, budgets, heads, width)
    masks = _network_masks(model, found, checkpoint)
    network = under_masks(network, source.module, masks)
    return replace(
        network,
        settings={**network.settings, "budgets": asdict(budgets)},
        details={"thresholds": asdict(thresholds)},
        warnings=(*overridden(checkpoint.path, checkpoint.args, budgets), *network.warnings),
    )


def _geometry(model: ir.Model) -> tuple[int, int]:
    """Heads of every block, and their width."""
    found = {(len(a.heads), len(a.heads[0].key.weight)) for a in map(_attention, model.blocks)}
    if len(found) != 1:
        raise CheckpointError(f"zetas: blocks have heads of {sorted(found)}; expected the same in all of them")
    return found.pop()


def _attention(block: ir.Block) -> ir.Attention:
    assert isinstance(block.attention, ir.Attention)
    return block.attention


def _zetas(weights: Weights, block: ir.Block, layer: int, rows: int, heads: int, width: int) -> Zetas:
    assert isinstance(block.mlp, ir.Mlp)
    hidden = len(block.mlp.up.weight)
    key = f"blocks.{layer}.attn.zeta"
    shape: Any = weights.shape(key, axes=5)
    if shape not in ((1, 1, heads, 1, width), (1, 1, heads, 1, 1), (1, 1, 1, 1, width)):
        raise CheckpointError(
            f"{key}: has the shape {list(shape)}, which does not fit {heads} heads of {width} channels"
        )
    return Zetas(
        attn=weights.take(key, shape).reshape(shape[2], shape[4]),
        mlp=weights.take(f"blocks.{layer}.mlp.zeta", (1, 1, hidden)).reshape(hidden),
        patch=weights.take(f"blocks.{layer}.attn.patch_zeta", (1, rows, 1)).reshape(rows),
    )


def _network_masks(model: ir.Model, masks: list[Masks], checkpoint: Checkpoint) -> NetworkMasks:
    blocks = []
    for block, own in zip(model.blocks, masks, strict=True):
        attention = _attention(block)
        if attention.normed:
            raise CheckpointError(
                f"{checkpoint.path}: {block.name}: zetas stand before the norm of queries and keys, which makes something "
                "else of zeros; expected a network without one"
            )
        tokens = None if own.patch.all() else own.patch
        if tokens is not None:
            check_rows(block, f"{checkpoint.path}: {block.name}.attn.patch_zeta")
        blocks.append(BlockMasks(own.attn, own.attn, own.mlp, tokens))
    last = blocks[-1].tokens
    read = None
    if last is not None and model.classifier.pool is not None:
        read = np.union1d(np.arange(model.prefix), np.flatnonzero(last))
    return NetworkMasks(tuple(blocks), None, read)
