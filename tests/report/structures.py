"""Structures to draw: of the vectors, and of networks as deep as ViT-H without their weights."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np

from slimc.files.structure import LayerStructure, Structure
from slimc.report.structure import KeptPatches
from slimc.targets.count import Counts

Found = tuple[Structure, tuple[Counts, Counts]]


@cache
def compiled(vector: str, variant: Literal["slim", "dense"] = "slim") -> Found:
    """The structure of a vector, and its counts. Imports are local: a process that draws `deep` needs no torch."""
    from slimc.compiler.compile import compile_network
    from slimc.compiler.load import load_network
    from slimc.compiler.options import CompileOptions
    from tests.artefacts import OPTIONS, VECTORS

    done = compile_network(load_network(VECTORS[vector], OPTIONS.get(vector)), CompileOptions(variant=variant))
    return done.structure, (done.dense, done.slim)


def deep(blocks: int = 32, heads: int = 16) -> Found:
    """A structure of ViT-H's size, cut at random."""
    rng = np.random.default_rng(blocks)
    layers = []
    for i in range(blocks):
        tokens = 257 - 2 * i
        layers.append(
            LayerStructure(
                name=f"blocks.{i}",
                heads=tuple(int(width) for width in rng.integers(0, 81, heads)),
                groups=((heads, 80),),
                hidden=int(rng.integers(0, 5121)),
                tokens=tokens,
                tokens_out=tokens - 2,
                keys=tokens,
                ghosts=0,
                macs_dense=5_000_000_000,
                macs=int(rng.integers(10**9, 5 * 10**9)),
                patches=tuple(range(tokens - 1)),
                tokens_before=tokens,
                scorer_macs=0,
            )
        )
    structure = Structure((224, 224), (16, 16), 1280, 1, 80, 5120, tuple(layers))
    return structure, (Counts(167_300_000_000, 632_045_800), Counts(113_290_000_000, 444_280_194))


def kept(structure: Structure) -> KeptPatches:
    """A picture, and patches that selections may have kept of it."""
    left = np.arange(structure.grid[0] * structure.grid[1])
    rng, chosen = np.random.default_rng(0), []
    for layer in structure.selecting:
        left = np.sort(rng.choice(left, layer.tokens - structure.prefix, replace=False))
        chosen.append(left)
    return KeptPatches(rng.random((*structure.image, 3)), tuple(chosen))
