"""Latency on this CPU: timm's dense export against slimc's dense, masked and slim models and two others of equal MACs.

The regular twin keeps as many channels as the searched network, spread evenly: every head of a layer has the same width. It
is the limit that ragged heads could reach. The other is what Torch-Pruning makes of timm's network.

The realised share of the cut is (1 - t / t_timm) / (1 - MACs / MACs_dense). For the slim network MACs are the fewest that
the masks allow: padding counts against it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import checkpoints, dynamic_vit
from benchmarks.timing import Effort, measure
from slimc import ir
from slimc.compiler.load import load_network
from slimc.compiler.pipeline import compile_model, passes_for
from slimc.emit.file import write_model
from slimc.emit.model import emit
from slimc.models.system import Network
from slimc.targets.count import count
from slimc.targets.target import Target, find_target

if TYPE_CHECKING:
    from torch import nn

TIMM = {"deit-t": "deit_tiny_patch16_224", "deit-s": "deit_small_patch16_224", "deit-b": "deit_base_patch16_224"}
SYSTEMS = ("ViT-Slim", "DynamicViT")
_TIMM_DENSE = "timm dense"
_TUNED = ("slim", "regular twin")


@dataclass(frozen=True)
class Case:
    """One line of the tables: what runs where. `budget` is DynamicViT's keep rate."""

    system: str
    size: str
    budget: float
    batch_size: int
    threads: int
    engine: str

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models to compare; the first is the baseline: timm has no LV-ViT."""
        baseline = _TIMM_DENSE if self.size in TIMM else "dense"
        others = [name for name in ("dense", "masked") if self.batch_size == 1 and self.engine == "onnxruntime"]
        if self.system == "ViT-Slim":
            others += ["regular twin", "Torch-Pruning"] if self.budget == 0.7 else ["regular twin"]
        return tuple(dict.fromkeys((baseline, "slim", *others)))


class Bench:
    """Models of one checkpoint, written into a folder when they are first asked for."""

    def __init__(self, system: str, size: str, budget: float, folder: Path) -> None:
        self.system, self.size, self.budget, self._folder = system, size, budget, folder
        self._searched: Network | None = None
        self._pruned: tuple[nn.Module, int] | None = None
        self._macs: dict[Path, int] = {}

    def run(self, case: Case, effort: Effort) -> Iterator[dict[str, Any]]:
        """Measure `case`: a row for every model."""
        written = [self._model(name, case.batch_size, case.threads) for name in case.models]
        times = measure([path for path, _ in written], case.engine, case.threads, effort)
        dense = self._dense_macs()
        for name, (_, macs), wall, processor in zip(case.models, written, *times, strict=True):
            low, ratio, high = np.quantile(wall / times[0, 0], (0.25, 0.5, 0.75))
            processor_ratio = float(np.median(processor / times[1, 0]))
            cut = 1 - (self._least_macs() if name == "slim" else macs) / dense
            yield {
                **dataclasses.asdict(case),
                "model": name,
                "macs": macs,
                "macs_ratio": macs / dense,
                "milliseconds": float(np.median(wall)) * 1e3,
                "ratio": float(ratio),
                "low": float(low),
                "high": float(high),
                "share": float((1 - ratio) / cut) if cut > 0.01 else None,
                "processor_ratio": processor_ratio,
                "processor_share": (1 - processor_ratio) / cut if cut > 0.01 else None,
                "rounds": len(wall),
                "seconds": effort.seconds,
            }

    @property
    def stem(self) -> str:
        """What the names of all its files begin with."""
        return f"{self.system}-{self.size}-{self.budget}"

    @property
    def searched(self) -> Network:
        """The checkpoint, understood."""
        if self._searched is None:
            path = self._folder / f"{self.stem}.pth"
            writer = dynamic_vit if self.system == "DynamicViT" else checkpoints
            writer.write_checkpoint(self.size, path, self.budget)
            self._searched = load_network(path, {})
        return self._searched

    def model(self, name: str, batch_size: int, threads: int) -> Path:
        """The ONNX model called `name`."""
        return self._model(name, batch_size, threads)[0]

    def _model(self, name: str, batch_size: int, threads: int) -> tuple[Path, int]:
        """Path and MACs of a model; those that slimc makes slim are tuned for a number of threads."""
        stem = f"{self.size if name == _TIMM_DENSE else self.stem}-{batch_size}-{name}"
        stem += f"-{threads}" if name in _TUNED else ""
        path = self._folder / f"{stem.replace(' ', '-')}.onnx"
        if path not in self._macs:
            self._macs[path] = self._write(name, batch_size, threads, path)
        return path, self._macs[path]

    def _write(self, name: str, batch_size: int, threads: int, path: Path) -> int:
        if name == _TIMM_DENSE:
            if not path.exists():
                export_torch(timm_network(self.size), batch_size, path)
            return self._dense_macs()
        if name == "Torch-Pruning":
            network, macs = self._pruned_network()
            export_torch(network, batch_size, path)
            return macs
        target = find_target("cpu", threads=threads)
        model = self._compiled(name, target, batch_size)
        write_model(emit(model, target, batch_size=batch_size), path)
        return count(model, target).macs

    def _compiled(self, name: str, target: Target, batch_size: int = 1) -> ir.Model:
        if name in ("dense", "masked"):
            return self.searched.dense if name == "dense" else self.searched.masked
        masked = regular_twin(self.searched.masked) if name == "regular twin" else self.searched.masked
        return compile_model(masked, passes_for(target, batch_size))

    def _pruned_network(self) -> tuple[nn.Module, int]:
        from benchmarks.pruning import pruned_network

        if self._pruned is None:
            self._pruned = pruned_network(TIMM[self.size], self._least_macs() / self._dense_macs())
        return self._pruned

    def _dense_macs(self) -> int:
        return count(self.searched.dense, find_target("generic")).macs

    def _least_macs(self) -> int:
        """The fewest MACs that the masks allow: nothing padded, no query that nobody reads."""
        generic = find_target("generic")
        return count(self._compiled("slim", generic), generic).macs


def timm_network(size: str) -> nn.Module:
    """Timm's dense network, with random weights."""
    import timm

    network: nn.Module = timm.create_model(TIMM[size]).eval()
    return network


def export_torch(network: nn.Module, batch_size: int, path: Path) -> None:
    """`network` as torch.onnx.export writes it."""
    import torch

    images = torch.zeros(batch_size, 3, 224, 224)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (images,), path, input_names=["images"], dynamo=True, verbose=False, external_data=False
        )


def regular_twin(masked: ir.Model) -> ir.Model:
    """`masked` with the kept channels of every layer spread evenly over its heads."""
    blocks = []
    for block in masked.blocks:
        attention = block.attention
        assert isinstance(attention, ir.Attention)
        kept = sum(int(head.mask.sum()) for head in attention.heads if head.mask is not None)
        width = max(1, round(kept / len(attention.heads)))
        even = (np.arange(len(attention.heads[0].query.weight)) < width).astype(np.float32)
        heads = tuple(dataclasses.replace(head, mask=even) for head in attention.heads)
        blocks.append(dataclasses.replace(block, attention=dataclasses.replace(attention, heads=heads)))
    return dataclasses.replace(masked, blocks=tuple(blocks))
