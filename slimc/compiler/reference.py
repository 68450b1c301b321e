"""What the PyTorch network computes, for the exported model to be compared with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slimc import ir
from slimc.compiler.limits import Limits, Usage, exact_images, graph_decisions, join
from slimc.compiler.options import ExportOptions
from slimc.files.checkpoint import Checkpoint
from slimc.files.images import load_images, seeded_images
from slimc.files.reference import Reference
from slimc.ir import FloatArray
from slimc.models.options import SearchedModel

if TYPE_CHECKING:
    import torch

    from slimc.models.options import Select

SEED = 0
_INPUTS = 4
_CHUNK = 4
# Seeded inputs to choose one from, where a network selects by the image.
_CANDIDATES = 3


def make_reference(
    checkpoint: Checkpoint,
    searched: SearchedModel,
    options: ExportOptions,
    files: list[Path],
    limits: Limits | None = None,
) -> Reference:
    """What the PyTorch network makes of seeded inputs and of the images in `files`.

    Where it decides for each image what runs, also which images a network with `limits` decides alike on.
    """
    import torch

    count_seeded = -(-_INPUTS // options.batch_size) * options.batch_size
    images = seeded_images(count_seeded, searched.masked.image, SEED)
    network = searched.network("dense" if options.variant == "dense" else "masked")
    select, observe = (searched.select, searched.observe) if options.variant != "dense" else (None, None)
    if select is not None:
        images = _surest(network, select, seeded_images(_CANDIDATES * count_seeded, searched.masked.image, SEED))
    if files:
        images = np.concatenate([images, load_images(files, searched.masked.image, searched.preprocessing)])
    kept: list[tuple[torch.Tensor, ...]] = []
    margins: list[float] = []
    used: list[Usage] = []
    decisions: dict[str, ir.BoolArray] = {}
    logits: list[torch.Tensor] = []
    with torch.inference_mode():
        for piece in torch.split(torch.from_numpy(images), _CHUNK):
            if select is not None:
                output, stages, sure = select(network, piece)
                kept.append(stages)
                margins += sure.tolist()
            elif observe is not None:
                output, usage = observe(network, piece)
                used.append(usage)
            else:
                output = network(piece)
            logits.append(output)
    facts: dict[str, Any] = {
        "source_sha256": checkpoint.sha256,
        "variant": options.variant,
        "seed": SEED,
        "seeded": count_seeded,
        "tolerance": options.tolerance,
    }
    if margins:
        facts["margins"] = margins
    if used:
        usage = join(used)
        exact = np.ones(len(images), bool) if limits is None else exact_images(usage, searched.masked, limits)
        facts["exact"] = exact.tolist()
        decisions = graph_decisions(usage, searched.masked, limits)
    chosen = tuple(torch.cat(stage).numpy() for stage in zip(*kept, strict=True))
    return Reference(images, torch.cat(logits).numpy(), facts, chosen, decisions)


def _surest(network: torch.nn.Module, select: Select, images: FloatArray) -> FloatArray:
    """Of `images`, the share of one in `_CANDIDATES` on which the network's selections are the surest, in order.

    What half precision keeps of these is not in doubt, so an engine can be judged by them.
    """
    import torch

    with torch.inference_mode():
        margins = torch.cat([select(network, piece)[2] for piece in torch.split(torch.from_numpy(images), _CHUNK)])
    order = margins.argsort(descending=True, stable=True)
    return np.ascontiguousarray(images[np.sort(order[: len(images) // _CANDIDATES].numpy())])


def shipped_part(reference: Reference) -> Reference:
    """The reference that is shipped: the seeded inputs only, which keeps it small.

    Where a network has limits, some exact images of the data folder as well: noise may exceed every limit.
    """
    chosen = list(range(int(reference.facts["seeded"])))
    facts = dict(reference.facts)
    if "exact" in facts:
        exact: list[bool] = facts["exact"]
        chosen += [i for i in range(len(chosen), len(exact)) if exact[i] and not all(exact)][:_INPUTS]
        facts["exact"] = [exact[i] for i in chosen]
    if "margins" in facts:
        facts["margins"] = [facts["margins"][i] for i in chosen]
    kept = tuple(array[chosen] for array in reference.kept)
    decisions = {name: array[chosen] for name, array in reference.decisions.items()}
    return Reference(reference.images[chosen], reference.logits[chosen], facts, kept, decisions)
