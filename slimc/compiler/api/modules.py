"""The library's functions on PyTorch modules: a network after training, and a file that PyTorch runs alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slimc import ir
from slimc.compiler.compile import Compiled
from slimc.errors import InternalError, OptionError
from slimc.files.output import check_output, replacing
from slimc.ir.preprocessing import Preprocessing
from slimc.models.system import Network, Variant, run_plainly
from slimc.models.systems import PLAIN

if TYPE_CHECKING:
    import torch


def from_torch(module: torch.nn.Module, like: Compiled | Network | None = None) -> Network:
    """The network that a module of `Compiled.to_torch` computes, with its weights of now: to compile, export and verify.

    Args:
        module: in any precision, on any device; also inside torch.compile or DistributedDataParallel.
        like: what the module was made of, or what that was compiled from: for its preprocessing, name and settings. Networks
            that select or decide by the image need it.

    Returns:
        The network as it is, slim: what is exported of it is compared with the module.

    Raises:
        OptionError: the module is none that slimc made, or `like` is missing.

    Example:
        >>> import torch
        >>> module = slim.to_torch().train()
        >>> optimiser = torch.optim.SGD(module.parameters(), lr=0.01)
        >>> module(torch.zeros(2, 3, 56, 56)).square().mean().backward()
        >>> optimiser.step()
        >>> trained = slimc.from_torch(module, slim)
        >>> slimc.export(trained, "trained.onnx").comparison.passed
        True
    """
    from slimc.models.slim_reference import SlimReference, read_slim_outputs, trace_slim
    from slimc.pytorch import from_torch as read

    model = read(module)
    chooses = any(block.select is not None or block.gates is not None for block in model.blocks)
    if like is None and chooses:
        raise OptionError("from_torch: a network that selects or decides by the image needs what it was compiled from")
    before = _before(model) if like is None else like if isinstance(like, Network) else _network(like)
    reference = SlimReference(model, decides=before.system.decides).eval()
    return replace(
        before,
        sha256=_digest(model),
        masked=model,
        pytorch=lambda _: reference,
        trace=trace_slim if chooses else run_plainly,
        read=None if chooses else read_slim_outputs,
        origin=before.origin or before.masked,
    )


def _before(model: ir.Model) -> Network:
    """What is known of a module of which nothing is said."""
    settings = {"architecture": "module"}
    return Network(PLAIN, Path("module"), "", model, model, _no_module, settings, Preprocessing())


def _no_module(variant: Variant) -> torch.nn.Module:
    raise InternalError(f"there is no {variant} module")


def _network(compiled: Compiled) -> Network:
    """What was compiled, with the limits that its gates were given."""
    limits = compiled.network.limits if compiled.limits is None else compiled.limits.to_json()
    return replace(compiled.network, limits=limits)


def export_program(module: torch.nn.Module, output: str | Path, *, batch_size: int | None = 1) -> Path:
    """Write the program of a module of `Compiled.to_torch`, which torch.export.load runs without slimc.

    Args:
        module: in any precision, on any device: the file has both.
        output: the file to write, which ends in .pt2.
        batch_size: images in a batch; None takes any number.

    Returns:
        The file.

    Raises:
        OptionError: the module is none that slimc made, or the output ends in something else.
        OutputError: the output cannot be written.

    Example:
        >>> import torch
        >>> path = slimc.export_program(slim.to_torch(), "small.pt2", batch_size=None)
        >>> program = torch.export.load(path).module()
        >>> program(torch.zeros(3, 3, 56, 56)).shape
        torch.Size([3, 10])
    """
    from slimc.pytorch import export_program as write

    path = Path(output)
    check_output(path, (".pt2",))
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"batch_size: {batch_size} images make no batch; expected at least 1")
    with replacing(path) as (temporary,):
        write(module, temporary, batch_size=batch_size)
    return path


def _digest(model: ir.Model) -> str:
    """A digest of the weights of `model`."""
    found = hashlib.sha256()
    for array in ir.arrays(model):
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
