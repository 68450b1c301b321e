"""From a searched network to the small one, in memory: start reading here.

    checkpoint -> load_network -> Network -> compile_network -> Compiled -> export -> ONNX, verified

`compile_network` gives a network of gates its limits, runs the passes of `slimc.compiler.pipeline` over the masked network
in IR, and counts what is left. `slimc.compiler.export` writes the result and compares it with the PyTorch network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slimc import ir
from slimc.compiler.adaptive import Adaptive, calibrate, choose_adaptive, limited, limiting_passes
from slimc.compiler.limits import Limits
from slimc.compiler.options import CompileOptions, check_options
from slimc.compiler.outputs import with_outputs
from slimc.compiler.pipeline import check_passes, compile_model, lasting_passes, passes_for
from slimc.compiler.reference import SEED
from slimc.emit.precision import Precision
from slimc.errors import CheckpointError, OptionError
from slimc.evaluate.progress import Progress, Stopwatch, silent
from slimc.files.images import readable_images, seeded_images
from slimc.files.structure import Structure, describe
from slimc.models.system import Network
from slimc.passes.rewrite import Pass
from slimc.targets.count import Counts, count

if TYPE_CHECKING:
    import torch

    from slimc.compiler.export import ExportReport


@dataclass(frozen=True, eq=False)
class Compiled:
    """A network compiled in memory.

    Attributes:
        network: what was compiled, with the outputs that were asked for.
        options: how.
        model: the result, in IR.
        structure: what is left of it, layer by layer.
        dense: parameters and MACs of the network with every mask at one.
        slim: those of the result.
        adaptive: how the decisions of an image were compiled; none where nothing is decided.
        limits: the limits that its gates have been given; none where they have none.
        pass_errors: the largest difference of any output after each pass in float64, where that was checked.
        milliseconds: where the time went.
    """

    network: Network
    options: CompileOptions
    model: ir.Model
    structure: Structure
    dense: Counts
    slim: Counts
    adaptive: Adaptive | None = None
    limits: Limits | None = None
    pass_errors: Mapping[str, float] | None = None
    milliseconds: Mapping[str, float] | None = None

    def export(
        self,
        output: Path | str,
        *,
        batch_size: int | None = None,
        precision: Precision | None = None,
        opset: int | None = None,
        data: Path | str | None = None,
        verify: bool = True,
        progress: Progress = silent,
    ) -> ExportReport:
        """Write the network as ONNX to `output`, with a reference beside it, after comparing it with PyTorch.

        Args:
            output: a path that ends in .onnx, or in .safetensors for a slim file.
            batch_size: images in a batch; None is what was compiled for, and so for the next three.
            precision: of matrix products: "fp32", "fp16" or "bf16".
            opset: of ONNX.
            data: a folder of images to compare on besides seeded inputs.
            verify: compare in ONNX Runtime before anything is written.
            progress: shows what is going on.

        Raises:
            UserError: an option or the output cannot be used.
            MismatchError: the ONNX model differs from the PyTorch network by more than the tolerance.
            MissingError: ONNX Runtime is not installed and is to verify.

        Example:
            >>> report = slim.export("small.onnx", batch_size=4)
            >>> report.comparison.passed
            True
        """
        from slimc.compiler.export import export_network

        given = {"batch_size": batch_size, "precision": precision, "opset": opset}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if data is not None:
            changes["data"] = Path(data)
        options = replace(self.options, **changes)
        same = self if options == self.options else None
        return export_network(self.network, Path(output), options, verify=verify, compiled=same, progress=progress)

    def to_torch(self) -> torch.nn.Module:
        """The network as a PyTorch module in eval mode: plain, trainable, under the checkpoint's names (`slimc.pytorch`).

        What only decides for an image is not trained: a decision has no derivative. To train, compile for the target
        "generic": the others fold biases into weights, where weight decay pulls at them. `slimc.from_torch` takes the module
        back.

        Example:
            >>> module = slim.to_torch()
            >>> module.blocks[0].attn.qkv.weight.shape, module.blocks[0].mlp.fc1.weight.shape
            (torch.Size([192, 64]), torch.Size([255, 64]))
        """
        from slimc.pytorch import to_torch

        return to_torch(self.model, self.options.effective_target)

    def without_weights(self) -> Compiled:
        """The same without the blocks of its model, which hold nearly all of its memory."""
        return replace(self, model=replace(self.model, blocks=()))


def compile_network(
    network: Network, options: CompileOptions, *, check: bool = False, progress: Progress = silent
) -> Compiled:
    """Compile `network` in memory.

    Args:
        network: what `slimc.compiler.load.load_network` made of a checkpoint.
        options: how to compile it.
        check: evaluate the network in float64 after every pass, and compare (to 1e-9).
        progress: shows what is going on.

    Raises:
        OptionError: the options cannot be used with this network.
        CheckpointError: the weights are so large that products of them overflow.
        PassError: `check` found that a pass changed an output.
    """
    check_options(options)
    _check_variant(network, options)
    network = with_outputs(network, options.outputs)
    watch = Stopwatch(progress)
    adaptive = choose_adaptive(options.adaptive, network, options.target, options.batch_size, options.data)
    limits = new = _calibrated(network, options, adaptive, watch)
    if adaptive is not None and network.limits is not None:
        limits, adaptive = Limits.from_json(network.limits), replace(adaptive, capacity=True)
    target = options.effective_target
    passes = passes_for(target, options.batch_size)
    with watch.stage("passes", "running the passes"):
        model = _compiled(network, options, (*(limiting_passes(new) if new else ()), *passes))
        compiled = Compiled(
            network=network,
            options=options,
            model=model,
            structure=describe(
                model,
                network.dense if options.variant == "dense" else network.origin or network.masked,
                network.dense,
                target,
            ),
            dense=count(network.dense, target),
            slim=count(model, target),
            adaptive=adaptive if options.variant == "slim" else None,
            limits=limits,
        )
    errors: Mapping[str, float] | None = None
    if check:
        with watch.stage("check_passes", "checking every pass in float64"):
            images = seeded_images(1, network.masked.image, SEED, network.masked.embedding.channels)
            # Limits change what an image computes that exceeds them; the passes behind them change nothing.
            errors = check_passes(limited(network.masked, new) if new else network.masked, passes, images)
    return replace(compiled, pass_errors=errors, milliseconds=watch.milliseconds)


def make_slim(network: Network, options: CompileOptions, watch: Stopwatch) -> Network:
    """`network` as slim as it is for every target and every output: what a slim file holds; itself where it is so already.

    Raises:
        OptionError, CheckpointError: see `compile_network`.
    """
    adaptive = choose_adaptive(options.adaptive, network, options.target, options.batch_size, options.data)
    new = _calibrated(network, options, adaptive, watch)
    with watch.stage("passes", "running the passes"):
        model = _compiled(network, options, (*(limiting_passes(new) if new else ()), *lasting_passes()))
    if model is network.masked:
        return network
    limits = network.limits if new is None else new.to_json()
    return replace(network, masked=model, origin=network.origin or network.masked, limits=limits)


def _calibrated(
    network: Network, options: CompileOptions, adaptive: Adaptive | None, watch: Stopwatch
) -> Limits | None:
    """The limits that the images of `options` suggest, where that is wanted."""
    if adaptive is None or not adaptive.capacity or options.data is None or options.variant != "slim":
        return None
    files = readable_images(options.data)
    with watch.stage("calibrate", f"running the network on {len(files)} images") as advance:
        return calibrate(network, files, adaptive.quantile, advance)


def _check_variant(network: Network, options: CompileOptions) -> None:
    """Refuse what a network cannot be compiled to.

    Raises:
        OptionError: it is slim already.
    """
    if options.variant not in network.variants:
        raise OptionError(
            f"--{options.variant}: {network.path} holds the slim network alone; give the checkpoint that it was made of"
        )


def _compiled(network: Network, options: CompileOptions, passes: tuple[Pass, ...]) -> ir.Model:
    """The variant that is wanted: baselines are emitted as they are."""
    if options.variant != "slim":
        return compile_model(network.masked if options.variant == "masked" else network.dense, ())
    try:
        with np.errstate(over="raise", invalid="raise"):
            return compile_model(network.masked, passes)
    except FloatingPointError:
        raise CheckpointError(
            f"{network.path}: weights so large that products of them overflow: a damaged file?"
        ) from None
