"""Exported models to build engines from, to verify and to time: the vectors', and random ones of DeiT's sizes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import onnx_ir as oir

from benchmarks.checkpoints import write_checkpoint
from slimc import ir
from slimc.emit import emit
from slimc.export import ExportOptions, compile_checkpoint, export
from slimc.models.options import ModelOptions, Variant
from slimc.target import find_target
from tests.vectors import DATA

VECTORS = {
    "channel": DATA / "vitslim-a-channel-0.7" / "checkpoint.pth",
    "heads": DATA / "vitslim-c-headsearch" / "checkpoint.pth",
    "patches": DATA / "vitslim-e-patch-cls" / "checkpoint.pth",
    "empty": DATA / "vitslim-g-emptylayers" / "checkpoint.pth",
    "digits": DATA / "vitslim-digits-a" / "retrained.pth",
}


def exported(vector: str, directory: Path, *, target: str = "sm89", batch_size: int = 1) -> Path:
    """The slim model of a vector, verified, with its reference beside it."""
    path = directory / f"{vector}.onnx"
    options = ExportOptions(target=find_target(target), batch_size=batch_size)
    export(VECTORS[vector], path, ModelOptions(), options)
    return path


@cache
def full_size(size: str, variant: Variant, directory: Path, *, groups: int | None = None) -> Path:
    """A network of DeiT's size for SM89, searched at budgets of 0.7 or dense, as a float32 model.

    With `groups` every attention's heads are packed into that many groups; else as pays best.
    """
    checkpoint = directory / f"{size}.pth"
    if not checkpoint.exists():
        write_checkpoint(size, checkpoint, 0.7)
    options = ExportOptions(variant=variant, target=find_target("sm89"))
    compiled, _ = compile_checkpoint(checkpoint, ModelOptions(), options)
    model = compiled.model if groups is None else _regrouped(compiled.model, groups)
    path = directory / f"{size}-{variant}-{groups}.onnx"
    oir.save(emit(model, options.target), path)
    return path


def _regrouped(model: ir.Model, groups: int) -> ir.Model:
    """`model` with the heads of every attention in `groups` groups of like size."""
    blocks = []
    for block in model.blocks:
        assert isinstance(block.attention, ir.Attention)
        heads = len(block.attention.heads)
        sizes = tuple(heads // groups + (i < heads % groups) for i in range(groups))
        blocks.append(replace(block, attention=replace(block.attention, groups=sizes)))
    return replace(model, blocks=tuple(blocks))
