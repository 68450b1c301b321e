"""Exported models to build engines from, to verify and to time: the vectors', and random ones of DeiT's sizes."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as oir

from benchmarks.checkpoints import write_checkpoint
from slimc.compiler.compile import compile_network
from slimc.compiler.export import emit_onnx, export_network
from slimc.compiler.load import load_network
from slimc.compiler.options import CompileOptions
from slimc.emit.precision import to_half
from slimc.files.reference import reference_path
from slimc.models.system import Variant
from slimc.targets.costs import CountedCosts
from slimc.targets.target import find_target
from tests.vectors import DATA

VECTORS = {
    "channel": DATA / "vitslim-a-channel-0.7" / "checkpoint.pth",
    "heads": DATA / "vitslim-c-headsearch" / "checkpoint.pth",
    "patches": DATA / "vitslim-e-patch-cls" / "checkpoint.pth",
    "empty": DATA / "vitslim-g-emptylayers" / "checkpoint.pth",
    "digits": DATA / "vitslim-digits-a" / "retrained.pth",
    "deit": DATA / "dynamicvit-a-deit-0.7" / "checkpoint.pth",
    "lvvit": DATA / "dynamicvit-c-lvvit-0.7" / "checkpoint.pth",
    "gates": DATA / "adavit-a-head-layer" / "checkpoint.pth",
    "tokens": DATA / "adavit-b-head-layer-tokenmlp" / "checkpoint.pth",
    "t2t": DATA / "adavit-c-t2t-performer" / "checkpoint.pth",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "deit": {"num_heads": 4, "pruning_loc": (3, 6, 9)},
    "lvvit": {"num_heads": 4, "pruning_loc": (2, 4, 6)},
}
_directory = tempfile.TemporaryDirectory(prefix="slimc-tests-")


def exported(vector: str, directory: Path, *, target: str = "sm89", batch_size: int = 1) -> Path:
    """The slim model of a vector, verified, with its reference beside it, in `directory`."""
    source = _exported(vector, target, batch_size)
    path = directory / f"{vector}.onnx"
    shutil.copyfile(source, path)
    shutil.copyfile(reference_path(source), reference_path(path))
    return path


@cache
def _exported(vector: str, target: str, batch_size: int) -> Path:
    path = Path(_directory.name) / f"{vector}-{target}-{batch_size}.onnx"
    options = CompileOptions(target=find_target(target), batch_size=batch_size)
    export_network(load_network(VECTORS[vector], OPTIONS.get(vector)), path, options)
    return path


@cache
def full_size(size: str, variant: Variant, directory: Path, *, many_groups: bool = False) -> Path:
    """A network of DeiT's size for SM89, searched at budgets of 0.7 or dense, as a float32 model.

    With `many_groups` heads are packed as if a further group cost nothing.
    """
    checkpoint = directory / f"{size}.pth"
    if not checkpoint.exists():
        write_checkpoint(size, checkpoint, 0.7)
    target = find_target("sm89")
    if many_groups:
        target = replace(target, costs=CountedCosts(0.0))
    options = CompileOptions(variant=variant, target=target)
    compiled = compile_network(load_network(checkpoint), options)
    path = directory / f"{size}-{variant}-{many_groups}.onnx"
    oir.save(emit_onnx(compiled), path)
    return path


def half(path: Path, directory: Path) -> Path:
    """The model at `path` with matrix products in float16."""
    model = oir.load(path)
    to_half(model, "fp16")
    typed = directory / f"{path.stem}-fp16.onnx"
    oir.save(model, typed)
    return typed
