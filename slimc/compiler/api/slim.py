"""The library's function for networks that people save whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimc.compiler.export_slim import SUFFIX
from slimc.compiler.load import load_module
from slimc.errors import OptionError
from slimc.files.output import check_output, replacing

if TYPE_CHECKING:
    import torch


def save(module: torch.nn.Module, output: str | Path, **options: Any) -> None:  # noqa: ANN401
    """Save a network of timm's, pruned physically or not, as a slim file: its structure and its weights, without pickle.

    `load` reads it back, without timm and without the code that pruned it, and everything that takes a checkpoint takes it.

    Args:
        module: a network of timm's whose heads, widths and depth may be any.
        output: the file to write, which ends in .safetensors.
        options: see `load`: how images become its inputs, `mean`, `std`, `crop_pct` and `interpolation`.

    Raises:
        CheckpointError: part of it computes what slimc does not know, or a weight is NaN or infinite.
        OptionError: an option is not one of plain vision transformers, or gives it masks.
        OutputError: the file cannot be written.

    Example:
        >>> import timm
        >>> slimc.save(timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=10), "tiny.safetensors")
        >>> slimc.load("tiny.safetensors").settings
        {'architecture': 'vit_tiny_patch16_224'}
    """
    from slimc.models import slim_file

    path = Path(output)
    check_output(path, (SUFFIX,), "output")
    if options.get("masks") is not None:
        raise OptionError("masks: save keeps a network as it is; export makes a slim file of one under masks")
    network = load_module(module, options)
    with replacing(path) as (temporary,):
        slim_file.save(network, temporary)
