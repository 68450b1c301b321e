"""From a checkpoint file to a model that is understood: picks the front end of its system."""

from __future__ import annotations

from pathlib import Path

from slimc.errors import CheckpointError
from slimc.files.checkpoint import Checkpoint, read_checkpoint
from slimc.models.options import ModelOptions, SearchedModel


def load(path: Path, options: ModelOptions, *, ema: bool | None = None) -> tuple[Checkpoint, SearchedModel]:
    """Read the checkpoint at `path` and understand it.

    Raises:
        CheckpointError, BudgetError, OptionError: see `slimc.files.checkpoint` and the front ends.
    """
    checkpoint = read_checkpoint(path, ema=ema)
    if checkpoint.system == "vit_slim":
        from slimc.models import vit_slim

        return checkpoint, vit_slim.load(checkpoint, options)
    if checkpoint.system == "dynamic_vit":
        from slimc.models import dynamic_vit

        return checkpoint, dynamic_vit.load(checkpoint, options)
    if checkpoint.system == "ada_vit":
        from slimc.models import ada_vit

        return checkpoint, ada_vit.load(checkpoint, options)
    raise CheckpointError(f"{path}: {checkpoint.system} checkpoints cannot be compiled yet")
