"""Kernels of TensorRT-RTX engines, dense against slim, for every GPU that TensorRT-RTX builds for. Needs no GPU.

One cannot conclude latency from the number of kernels; but a fused attention that was lost, or a copy between two products,
shows in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import write_checkpoint
from slimc.backends.engine_file import EngineFacts
from slimc.compiler.engine import EngineOptions, build_engine
from slimc.compiler.export import export_network
from slimc.compiler.load import load_network
from slimc.compiler.options import CompileOptions
from slimc.models.system import Variant
from slimc.targets.target import find_target

TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")


def measure(size: str, target: str, folder: Path, budget: float = 0.7) -> Iterator[dict[str, Any]]:
    """A row for the dense and one for the slim engine, in half precision at batch size 1."""
    checkpoint = folder / f"{size}-{budget}.pth"
    if not checkpoint.exists():
        write_checkpoint(size, checkpoint, budget)
    dense, slim = (_build(checkpoint, variant, target, folder) for variant in ("dense", "slim"))
    before = {block.name: block.kernels for block in dense.blocks}
    for variant, facts in (("dense", dense), ("slim", slim)):
        yield {
            "size": size,
            "budget": budget,
            "target": target,
            "variant": variant,
            "kernels": len(facts.kernels),
            "kernels_in_blocks": sum(block.kernels for block in facts.blocks),
            "most_more_in_a_block": max(block.kernels - before.get(block.name, 0) for block in facts.blocks),
            "blocks": len(facts.blocks),
            "attentions": sum(block.attentions for block in facts.blocks),
            "fused": sum(block.fused for block in facts.blocks),
            "megabytes": facts.plan_bytes / 2**20,
        }


def _build(checkpoint: Path, variant: Variant, target: str, folder: Path) -> EngineFacts:
    onnx = folder / f"{checkpoint.stem}-{variant}-{target}.onnx"
    export_network(
        load_network(checkpoint), onnx, CompileOptions(variant=variant, target=find_target(target)), verify=False
    )
    options = EngineOptions(backend="tensorrt-rtx", targets=(target,), precision="fp16", verify=False)
    return build_engine(onnx, onnx.with_suffix(".engine"), options).facts
