"""To PyTorch, back, and on to files that PyTorch runs alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from slimc import ir
from slimc.errors import OptionError
from slimc.pytorch.network import VisionTransformer
from slimc.targets.target import Target, find_target


def to_torch(model: ir.Model, target: Target | None = None) -> VisionTransformer:
    """`model` as a PyTorch module in eval mode, computed as `target` likes it; none is the target ``generic``."""
    return VisionTransformer(model, find_target("generic") if target is None else target)


def from_torch(module: nn.Module) -> ir.Model:
    """The model of a module that `to_torch` made, with its weights of now; wrapped or compiled ones as well.

    Raises:
        OptionError: it is another module.
    """
    return unwrapped(module).to_ir()


def unwrapped(module: nn.Module) -> VisionTransformer:
    """What `to_torch` made, out of what torch.compile, DistributedDataParallel or DataParallel made of it.

    Raises:
        OptionError: there is something else in it.
    """
    for name in ("_orig_mod", "module"):
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module):
            return unwrapped(inner)
    if not isinstance(module, VisionTransformer):
        raise OptionError(f"{type(module).__name__}: no module that slimc made; expected one of to_torch")
    return module


def export_program(
    module: nn.Module, path: Path, *, batch_size: int | None = None, notes: Mapping[str, str] | None = None
) -> None:
    """Write the program of `module` to `path`: `torch.export.load(path).module()` runs it without slimc.

    Args:
        module: what `to_torch` made, on any device; the file is for that device.
        path: ends in .pt2.
        batch_size: of its input, ``images``; None takes any.
        notes: texts that go into the file, by the names of files.

    Raises:
        OptionError: it is another module.
    """
    network = unwrapped(module)
    weight = network.patch_embed.proj.weight
    count = 2 if batch_size is None else batch_size
    images = torch.zeros((count, network.channels, *network.model.image), dtype=weight.dtype, device=weight.device)
    dynamic = {"images": {0: torch.export.Dim("batch")}} if batch_size is None else None
    was_training = network.training
    try:
        program = torch.export.export(network.eval(), (images,), dynamic_shapes=dynamic, strict=True)
    finally:
        network.train(was_training)
    torch.export.save(program, path, extra_files=dict(notes or {}))
