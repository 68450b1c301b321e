"""The network of a slim file as a PyTorch module: the reference that what is compiled from the file is compared with.

It asks the interpreter, in float64: slow, and the definition of what the network means. Whatever else turns a model into a
module takes its place in `SlimReference.run`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from slimc import ir
from slimc.ir.gate_usage import BlockUsage, Usage
from slimc.ir.interpret import model as interpreter
from slimc.ir.interpret.gates import Decisions
from slimc.models.system import Trace


class SlimReference(nn.Module):
    """A model of the IR that runs on tensors; `decides` says whether it tells what it decided for each image."""

    def __init__(self, model: ir.Model, *, decides: bool = False) -> None:
        super().__init__()
        self.model, self.decides = model, decides

    def forward(self, images: Tensor) -> Tensor:
        """The first output of images [B, channels, height, width]: logits where it has a head."""
        return next(iter(self.outputs(images, (self.model.outputs[0].name,)).values()))

    def outputs(self, images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The outputs `names` of images, float32."""
        return {name: _tensor(values) for name, values in self.run(images, names).outputs.items()}

    def run(self, images: Tensor, names: tuple[str, ...] | None = None) -> interpreter.Trace:
        """What the model makes of images, and what it chose; its own outputs where there are no `names`."""
        own = tuple(output.name for output in self.model.outputs)
        model = self.model if names is None or names == own else ir.choose_outputs(self.model, names)
        return interpreter.trace(model, images.detach().cpu().numpy())


def trace_slim(network: nn.Module, images: Tensor) -> Trace:
    """The first output of a `SlimReference`, and what it chose on the way."""
    assert isinstance(network, SlimReference)
    found = network.run(images)
    logits = _tensor(next(iter(found.outputs.values())))
    kept = tuple(torch.from_numpy(patches) for patches in found.kept)
    usage = _usage(network.model, found.decisions) if network.decides else None
    return Trace(logits, kept, _tensor(found.margins) if kept else None, usage)


def _usage(model: ir.Model, decisions: Sequence[Decisions]) -> Usage:
    """What ran; heads about which nothing is decided are on."""
    blocks = []
    for block, decided in zip(model.blocks, decisions, strict=True):
        parts = [part > 0.5 for part in (decided.attention, decided.mlp, decided.heads, decided.tokens)]
        if (block.gates is None or block.gates.heads is None) and isinstance(block.attention, ir.Attention):
            parts[2] = np.ones((len(parts[0]), len(block.attention.heads)), bool)
        blocks.append(BlockUsage(*parts))
    return Usage(tuple(blocks), np.min([decided.margin for decided in decisions], axis=0))


def read_slim_outputs(network: nn.Module, images: Tensor, names: tuple[str, ...]) -> Mapping[str, Tensor]:
    """The outputs `names` of a `SlimReference`."""
    assert isinstance(network, SlimReference)
    return network.outputs(images, names)


def _tensor(values: ir.FloatArray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))
