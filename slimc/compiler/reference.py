"""What the PyTorch network computes, for the exported model to be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slimc import ir
from slimc.compiler.limits import Limits, exact_images, graph_decisions
from slimc.compiler.outputs import names_of
from slimc.evaluate.progress import Advance
from slimc.files.images import Images, StreamedImages, seeded_images
from slimc.files.reference import Reference
from slimc.ir import FloatArray
from slimc.ir.gate_usage import join
from slimc.models.system import Network, Trace, Variant, run_plainly

if TYPE_CHECKING:
    import torch

SEED = 0
_INPUTS = 4
_CHUNK = 4
# Seeded inputs to choose one from, where a network selects by the image.
_CANDIDATES = 3


def make_reference(
    network: Network,
    variant: Variant,
    batch_size: int,
    tolerance: float,
    files: list[Path],
    limits: Limits | None,
    advance: Advance,
) -> Reference:
    """What the PyTorch network makes of seeded inputs, at least `_INPUTS` in whole batches, and of the images in `files`.

    Where it decides for each image what runs, also which images a network with `limits` decides alike on, unless these are
    the limits of `network` itself. `tolerance` is recorded.
    """
    limits = limits if network.limits is None else None
    count_seeded = -(-_INPUTS // batch_size) * batch_size
    run = Runner(network, variant)
    image, channels = network.masked.image, network.masked.embedding.channels
    held = seeded_images(count_seeded, image, SEED, channels)
    if network.selects and variant != "dense":
        candidates = seeded_images(_CANDIDATES * count_seeded, image, SEED, channels)
        held = _surest(candidates, run.all(candidates, lambda *_: None).traces)
    images = StreamedImages(held, tuple(files), network.preprocessing)
    found = run.all(images, advance)
    facts: dict[str, Any] = {
        "source_sha256": network.sha256,
        "variant": variant,
        "seed": SEED,
        "seeded": count_seeded,
        "tolerance": tolerance,
    }
    margins = [margin for trace in found.traces if trace.margins is not None for margin in trace.margins.tolist()]
    if margins:
        facts["margins"] = margins
    decisions: dict[str, ir.BoolArray] = {}
    used = [trace.usage for trace in found.traces if trace.usage is not None]
    if used:
        usage = join(used)
        exact = np.ones(len(images), bool) if limits is None else exact_images(usage, network.masked, limits)
        facts["exact"] = exact.tolist()
        decisions = graph_decisions(usage, network.masked, limits)
    stages = zip(*(trace.kept for trace in found.traces), strict=True)
    kept = tuple(np.concatenate([part.numpy() for part in stage]) for stage in stages)
    return Reference(images, found.outputs, facts, kept, decisions)


@dataclass(frozen=True, eq=False)
class Found:
    """What a network made of images: outputs [n, ...] by name, and what it chose, a few images at a time."""

    outputs: dict[str, FloatArray]
    traces: list[Trace]


class Runner:
    """Runs the PyTorch network of a variant of `network`."""

    def __init__(self, network: Network, variant: Variant) -> None:
        self._module = network.pytorch("dense" if variant == "dense" else "masked")
        self._trace = run_plainly if variant == "dense" else network.trace
        self._read = network.read
        self._names = names_of(network)

    def all(self, images: Images, advance: Advance) -> Found:
        """What it makes of `images`, a few at a time."""
        import torch

        outputs: dict[str, FloatArray] = {}
        traces = []
        with torch.inference_mode():
            for start in range(0, len(images), _CHUNK):
                trace, some = self._some(torch.from_numpy(images[start : start + _CHUNK]))
                for name, values in some.items():
                    if name not in outputs:
                        outputs[name] = np.empty((len(images), *values.shape[1:]), np.float32)
                    outputs[name][start : start + len(values)] = values.numpy()
                traces += [] if trace is None else [trace]
                advance(min(start + _CHUNK, len(images)), len(images))
        return Found(outputs, traces)

    def _some(self, images: torch.Tensor) -> tuple[Trace | None, Mapping[str, torch.Tensor]]:
        """What it chose for a few images, none where it chooses nothing, and its outputs."""
        chooses = self._read is None or self._trace is not run_plainly
        trace = self._trace(self._module, images) if chooses else None
        if self._read is not None:
            found = self._read(self._module, images, self._names)
            return trace, {name: found[name] for name in self._names}
        assert trace is not None
        return trace, {"logits": trace.logits}


def _surest(images: FloatArray, traces: list[Trace]) -> FloatArray:
    """Of `images`, the share of one in `_CANDIDATES` on which the network's selections are the surest, in order.

    What half precision keeps of these is not in doubt, so an engine can be judged by them.
    """
    import torch

    margins = torch.cat([found.margins for found in traces if found.margins is not None])
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
    outputs = {name: array[chosen] for name, array in reference.outputs.items()}
    return Reference(reference.images[np.array(chosen)], outputs, facts, kept, decisions)
