"""The network of a slim file as a PyTorch module: the reference that what is compiled from the file is compared with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from slimc import ir
from slimc.models.system import Trace
from slimc.pytorch import Choices, VisionTransformer, choices, to_torch


class SlimReference(nn.Module):
    """A model of the IR that runs on tensors; `decides` says whether it tells what it decided for each image."""

    def __init__(self, model: ir.Model, *, decides: bool = False) -> None:
        super().__init__()
        self.model, self.decides = model, decides
        self.network = _frozen(model)
        self.asked = tuple(output.name for output in model.outputs)

    def forward(self, images: Tensor) -> Tensor:
        """The first output of images [B, channels, height, width]: logits where it has a head."""
        return next(iter(self.network.by_name(images).values()))

    def outputs(self, images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The outputs `names` of images, float32."""
        if names != self.asked:
            self.network, self.asked = _frozen(ir.choose_outputs(self.model, names)), names
        return dict(self.network.by_name(images))

    def run(self, images: Tensor) -> Choices:
        """What the model makes of images, and what it chose."""
        return choices(self.network, images)


def _frozen(model: ir.Model) -> VisionTransformer:
    """`model` as a module that nobody trains."""
    return to_torch(model).eval().requires_grad_(requires_grad=False)


def trace_slim(network: nn.Module, images: Tensor) -> Trace:
    """The first output of a `SlimReference`, and what it chose on the way."""
    assert isinstance(network, SlimReference)
    found = network.run(images)
    usage = found.usage if network.decides else None
    return Trace(next(iter(found.outputs.values())), found.kept, found.margins if found.kept else None, usage)


def read_slim_outputs(network: nn.Module, images: Tensor, names: tuple[str, ...]) -> Mapping[str, Tensor]:
    """The outputs `names` of a `SlimReference`."""
    assert isinstance(network, SlimReference)
    return network.outputs(images, names)
