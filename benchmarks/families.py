"""Families of plain vision transformers: what works, entry point by entry point, in a tiny geometry with random weights.

    python -m benchmarks.families [NAME ...]

Every entry point is read, compiled dense and under random masks, run in ONNX Runtime against timm itself, and built
by TensorRT-RTX for SM89 in float16. Results go to benchmarks/results/families.json, the table of families to families.md,
which the README and the documentation show.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import slimc
from slimc import ir
from slimc.backends.fusion import BlockFusion
from slimc.errors import CheckpointError
from slimc.models.system import Network
from tests.models.timm_networks import entry_points, masks_of, tiny

RESULTS = Path(__file__).parent / "results"
# The first whose part a name has: order matters.
FAMILIES = {
    "dinov2": "DINOv2, with and without registers",
    "dinov3": "DINOv3",
    "eupe": "EUPE",
    "lingbot": "LingBot-Vision",
    "sapiens2": "Sapiens 2",
    "siglip": "SigLIP, SigLIP 2",
    "eva": "EVA, EVA-02",
    "clip": "CLIP",
    "_pe_": "PE (core, lang, spatial)",
    "aimv2": "AIMv2",
    "intern": "InternViT",
    "_rope_": "ViT with RoPE",
    "deit3": "DeiT-3",
    "deit": "DeiT, distilled too",
    "wee": "SBB",
    "little": "SBB",
    "medium": "SBB",
    "betwixt": "SBB",
    "so150m": "SBB",
    "flexivit": "FlexiViT",
    "_gap_": "ViT, average pooled (I-JEPA, MAE and others)",
}
OTHERS = "ViT (AugReg, DINO, MAE and others)"
KINDS = ("heads", "qk", "v", "hidden", "patches")


@dataclass(frozen=True)
class Row:
    """One entry point.

    Attributes:
        name: timm's.
        family: as the table has it.
        refused: why it does not compile; none where it does.
        error: the largest difference of any output from timm's, as a share of its spread: dense at batch 1, masked at
            batch 3.
        fused: attentions that TensorRT-RTX fuses, of how many; none where no engine was built.
        lost: why the others are not fused.
        masks: kinds of masks that compile.
    """

    name: str
    family: str
    refused: str | None = None
    error: float | None = None
    fused: tuple[int, int] | None = None
    lost: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()


def family_of(name: str) -> str:
    """The family of an entry point."""
    return next((family for part, family in FAMILIES.items() if part in name), OTHERS)


def outputs_of(model: ir.Model) -> tuple[str, ...]:
    """Every output that a network has, of one block."""
    pooled = model.classifier.rows or model.classifier.pool is not None
    heads = ("logits",) if model.classifier.heads else ()
    return ("tokens", "blocks.0:nchw", *(("features",) if pooled else ()), *heads)


def check(name: str, *, engines: bool = True) -> Row:
    """What works of the entry point `name`."""
    module = tiny(name).float()
    try:
        plain = slimc.load(module)
    except CheckpointError as error:
        return Row(name, family_of(name), refused=str(error).split(": ", 1)[1])
    masks = masks_of(plain.dense, np.random.default_rng(len(name)))
    masked = slimc.mask(plain, masks)
    errors = [error_of(plain, batch_size=1), error_of(masked, batch_size=3)]
    kinds = {key.rpartition(".")[2] for key in masks}
    blocks = fusions(plain) if engines else []
    return Row(
        name,
        family_of(name),
        error=max(errors),
        fused=(sum(b.fused for b in blocks), sum(b.attentions for b in blocks)) if engines else None,
        lost=tuple(sorted({reason for block in blocks for reason in block.lost})),
        masks=tuple(kind for kind in KINDS if kind in kinds),
    )


def error_of(network: Network, batch_size: int) -> float:
    """The largest difference of any output in ONNX Runtime from timm's, as a share of its spread."""
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "model.onnx"
        report = slimc.export(network, model, outputs=outputs_of(network.dense), batch_size=batch_size)
        assert report.comparison is not None
        return report.comparison.max_rel


def fusions(network: Network) -> Sequence[BlockFusion]:
    """What TensorRT-RTX makes of the blocks of `network` for SM89 in float16."""
    with tempfile.TemporaryDirectory() as directory:
        engine = Path(directory) / "model.engine"
        return slimc.build_engine(network, engine, precision="fp16", target="sm89").facts.blocks


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The table of families, in Markdown."""
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    lines = [
        "| family | compile, of timm's entry points | largest error | fused on SM89, fp16 | masks |",
        "|---|---|---|---|---|",
    ]
    for family in sorted(families, key=str.lower):
        members = families[family]
        done = [row for row in members if row["refused"] is None]
        if not done:
            reason = members[0]["refused"].split(", which")[0].rpartition(": ")[2]
            lines.append(f"| {family} | 0 of {len(members)}: {reason} | | | |")
            continue
        built = [row["fused"] for row in done if row["fused"] is not None]
        attentions = f"{sum(b[0] for b in built)} of {sum(b[1] for b in built)}" if built else "not built"
        everywhere = [kind for kind in KINDS if all(kind in row["masks"] for row in done)]
        some = [kind for kind in KINDS if kind not in everywhere and any(kind in row["masks"] for row in done)]
        masks = ", ".join([*everywhere, *(f"{kind} (not all)" for kind in some)])
        worst = max(row["error"] for row in done)
        lines.append(f"| {family} | {len(done)} of {len(members)} | {worst:.0e} | {attentions} | {masks} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Check the entry points that are asked for, and keep the others' results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="default: those that have no results yet, else all of timm's")
    options = parser.parse_args()
    kept = RESULTS / "families.json"
    names = entry_points()
    found = {row["name"]: row for row in json.loads(kept.read_text())} if kept.exists() else {}
    for name in options.names or [name for name in names if name not in found] or names:
        found[name] = asdict(check(name))
        rows = [found[each] for each in names if each in found]
        kept.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
        (RESULTS / "families.md").write_text(table(rows))
        print(json.dumps(found[name]), flush=True)


if __name__ == "__main__":
    main()
