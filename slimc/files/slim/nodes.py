"""What the structure of a slim file is made of: the nodes of the IR, by name, and the axes of their arrays.

A node is a JSON object with its class's name under "node" and its fields by name, of which those that have their default
are left out. Masks have no place in it: what they switch off is gone.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, get_type_hints

from slimc import ir

KINDS: tuple[type, ...] = (
    ir.Attention, ir.BatchNorm, ir.Block, ir.Classifier, ir.Constant, ir.Convolution, ir.Embedding, ir.Gates, ir.Head,
    ir.LatentHead, ir.LatentPool, ir.LayerNorm, ir.Linear, ir.Mlp, ir.Model, ir.Output, ir.PatchEmbed, ir.Performer,
    ir.Pool, ir.RmsNorm, ir.Rotation, ir.SelectTokens, ir.SoftSplit, ir.TokenGate, ir.TokenScorer,
)  # fmt: skip
NODES = {kind.__name__: kind for kind in KINDS}

# Axes of every array.
AXES: dict[str, dict[str, int]] = {
    "Attention": {"output_bias": 1, "rows": 1, "layer_scale": 1},
    "BatchNorm": {"weight": 1, "bias": 1, "mean": 1, "variance": 1},
    "Block": {"live": 1},
    "Constant": {"vector": 1},
    "Convolution": {"weight": 4, "bias": 1},
    "Embedding": {"prefix": 2, "prefix_position": 2, "patch_position": 2},
    "Head": {"output": 2},
    "LatentHead": {"query": 1, "output": 2},
    "LatentPool": {"output_bias": 1, "rows": 1},
    "LayerNorm": {"weight": 1, "bias": 1},
    "Linear": {"weight": 2, "bias": 1},
    "Mlp": {"rows": 1, "inputs": 1, "input_gates": 1, "unit_gates": 1, "layer_scale": 1},
    "Output": {"rows": 1},
    "PatchEmbed": {"weight": 4, "bias": 1, "patches": 1},
    "Performer": {"features": 2},
    "Pool": {"rows": 1},
    "RmsNorm": {"weight": 1},
    "Rotation": {"cos": 2, "sin": 2},
}
MASKS = {
    "Attention": ("token_mask",),
    "Head": ("mask", "value_mask"),
    "LatentHead": ("mask", "value_mask"),
    "Mlp": ("mask", "token_mask"),
}
# What belongs to heads is joined along the first axis, but for the columns of their outputs.
COLUMNS = ("output",)


@cache
def fields_of(name: str) -> dict[str, tuple[Any, Any]]:
    """Type and default (`dataclasses.MISSING` where there is none) of every field of the node `name`, without masks."""
    kind = NODES[name]
    hints = get_type_hints(kind, localns=dict(vars(ir)))
    masks = MASKS.get(name, ())
    return {
        field.name: (hints[field.name], field.default) for field in dataclasses.fields(kind) if field.name not in masks
    }
