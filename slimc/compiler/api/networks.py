"""The library's functions on networks: load, compile, export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimc.compiler.adaptive import Adaptive, find_adaptive
from slimc.compiler.compile import Compiled, compile_network
from slimc.compiler.export import ExportReport, check_export, export_network
from slimc.compiler.load import load_module, load_network, refuse_loading
from slimc.compiler.options import CompileOptions, check_measured
from slimc.compiler.outputs import read_names
from slimc.emit.precision import Precision
from slimc.errors import OptionError
from slimc.evaluate.progress import Progress, Stopwatch, silent
from slimc.models.system import Network, Variant
from slimc.targets.target import Target, find_target

if TYPE_CHECKING:
    import torch


def load(
    checkpoint: str | Path | torch.nn.Module,
    *,
    ema: bool | None = None,
    **options: Any,  # noqa: ANN401
) -> Network:
    """Read a searched checkpoint, or any plain vision transformer, and understand it.

    Args:
        checkpoint: a .pth, .pth.tar, .pt or .safetensors file of ViT-Slim, DynamicViT or AdaViT, or of a vision transformer
            that timm has; a slim file; a folder with config.json and weights, as timm and Hugging Face write it; or a
            module of timm's. Nothing in a file is executed.
        ema: take the averaged weights; None leaves it to the system's own evaluation.
        options: what the checkpoint does not say itself: ``budget=0.7``, ``keep_rate=0.7``, ``num_heads=6``,
            ``state_key="student"`` where it has several networks, and whatever else ``slimc export --help`` lists for its
            system, with underscores.

    Raises:
        CheckpointError: the file is missing, damaged, holds something else, or is of no known system.
        BudgetError, OptionError: an option is missing, cannot be used, or is not one of the system.

    Example:
        >>> net = slimc.load("searched.pth", budget=0.7)
        >>> net.system.title
        'ViT-Slim'
        >>> net.settings["budgets"]
        {'attn': 0.7, 'mlp': 0.7, 'patch': 0.7}
    """
    if isinstance(checkpoint, (str, Path)):
        return load_network(Path(checkpoint), options, ema=ema)
    if ema is not None:
        raise OptionError("ema: says which weights of a file to take; a module has its own")
    return load_module(checkpoint, options)


def compile(  # noqa: A001 - as re.compile, torch.compile
    network: Network,
    *,
    target: str | Target = "generic",
    threads: int | None = None,
    tuning: str | Path | None = None,
    variant: Variant = "slim",
    batch_size: int = 1,
    precision: Precision = "fp32",
    opset: int | None = None,
    adaptive: str | Adaptive | None = None,
    data: str | Path | None = None,
    outputs: str | Sequence[str] | None = None,
    check_passes: bool = False,
    progress: Progress = silent,
) -> Compiled:
    """Compile a network in memory: what is left of it, counted, and ready to be exported.

    Args:
        network: what `load` returned.
        target: what it is for: "generic", "cpu", "sm75", "sm80", "sm86", "sm89", ...
        threads: of one inference, for the target "cpu".
        tuning: a file that `tune` wrote, for the target "cpu".
        variant: "slim"; or as baselines "masked", as the research code runs it, or "dense", with every mask at one.
        batch_size: images in a batch; shapes are static.
        precision: of matrix products: "fp32", "fp16" or "bf16".
        opset: of ONNX, 17 to 23; None takes the oldest that has the operators.
        adaptive: AdaViT: "masked", "conditional", "capacity" or "conditional+capacity"; None takes the fastest exact way.
        data: a folder of images, on which capacities are calibrated and which `Compiled.export` compares on.
        outputs: one or several names, or a text of them with commas: "logits", "features" (what the head reads), "tokens"
            (the patches behind the last norm) or "blocks.5" (behind that block), these two also as maps: "tokens:nchw".
            None takes the logits where the network has a head, else the features, else the tokens.
        check_passes: evaluate the network in float64 after every pass, and compare to 1e-9.
        progress: shows what is going on (`slimc.evaluate.progress`).

    Raises:
        OptionError: an option cannot be used with this network.

    Example:
        >>> slim = slimc.compile(slimc.load("digits.pth"), target="generic")
        >>> f"{slim.slim.params:,} of {slim.dense.params:,} parameters"
        '197,321 of 316,490 parameters'
        >>> [layer.hidden for layer in slim.structure.layers][:3]
        [255, 208, 151]
    """
    options = _compile_options(target, threads, tuning, variant, batch_size, precision, opset, adaptive, data, outputs)
    return compile_network(network, options, check=check_passes, progress=progress)


def export(
    network: str | Path | Network | torch.nn.Module,
    output: str | Path,
    *,
    target: str | Target = "generic",
    threads: int | None = None,
    tuning: str | Path | None = None,
    variant: Variant = "slim",
    batch_size: int = 1,
    precision: Precision = "fp32",
    opset: int | None = None,
    adaptive: str | Adaptive | None = None,
    data: str | Path | None = None,
    outputs: str | Sequence[str] | None = None,
    verify: bool = True,
    check_passes: bool = False,
    ema: bool | None = None,
    progress: Progress = silent,
    **options: Any,  # noqa: ANN401
) -> ExportReport:
    """Load, compile and export in one go, which needs the least memory; see `load`, `compile` and `Compiled.export`.

    Args:
        network: what `load` takes, or what it returned.
        output: the model to write, which ends in .onnx, its reference beside it; or a slim file, .safetensors.
        target: see `compile`.
        threads: see `compile`.
        tuning: see `compile`.
        variant: see `compile`.
        batch_size: see `compile`.
        precision: see `compile`.
        opset: see `compile`.
        adaptive: see `compile`.
        data: see `compile`.
        outputs: see `compile`.
        verify: compare with the PyTorch network in ONNX Runtime before anything is written.
        check_passes: see `compile`.
        ema: see `load`, for a checkpoint.
        progress: see `compile`.
        options: see `load`, for a checkpoint.

    Raises:
        UserError: the checkpoint, an option or the output cannot be used.
        MismatchError: the ONNX model differs from the PyTorch network by more than the tolerance.

    Example:
        >>> report = slimc.export("digits.pth", "digits.onnx", target="cpu", threads=1)
        >>> report.comparison.passed, report.comparison.top1_agreement
        (True, 1.0)
    """
    how = _compile_options(target, threads, tuning, variant, batch_size, precision, opset, adaptive, data, outputs)
    watch = Stopwatch(progress)
    if isinstance(network, (str, Path)):
        check_export(Path(network), Path(output), how, verify=verify, check_passes=check_passes)
        with watch.stage("load", f"reading {Path(network).name}"):
            network = load_network(Path(network), options, ema=ema, dense=variant == "dense")
    elif isinstance(network, Network):
        refuse_loading(network, options, ema)
    else:
        with watch.stage("load", "reading the module"):
            network = load(network, ema=ema, **options)
    return export_network(
        network, Path(output), how, verify=verify, check_passes=check_passes, watch=watch, progress=progress
    )


def _compile_options(
    target: str | Target,
    threads: int | None,
    tuning: str | Path | None,
    variant: Variant,
    batch_size: int,
    precision: Precision,
    opset: int | None,
    adaptive: str | Adaptive | None,
    data: str | Path | None,
    outputs: str | Sequence[str] | None,
) -> CompileOptions:
    measured = "--tuning" if tuning is not None else "--threads" if threads is not None else None
    if isinstance(target, str):
        target = find_target(target, threads=threads, tuning=tuning)
    elif threads is not None or tuning is not None:
        raise OptionError("threads, tuning: belong to the target, which is made already; give them to find_target")
    options = CompileOptions(
        variant=variant,
        batch_size=batch_size,
        opset=opset,
        target=target,
        precision=precision,
        adaptive=find_adaptive(adaptive) if isinstance(adaptive, str) else adaptive,
        data=None if data is None else Path(data),
        outputs=read_names(outputs),
    )
    check_measured(options, measured)
    return options
