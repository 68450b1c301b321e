"""slimc: from the vision transformer that you have to the fastest engine that computes the same.

    net = slimc.load("checkpoint.pth")
    slim = slimc.compile(net, target="cpu", threads=2)
    slim.export("small.onnx")
    slimc.verify("small.onnx")

Every function imports what it needs when it is called: importing slimc costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimc.errors import (
    BudgetError,
    CheckpointError,
    MismatchError,
    MissingError,
    ModelFileError,
    OptionError,
    OutputError,
    SlimcError,
    UserError,
)

if TYPE_CHECKING:
    from slimc.compiler.adaptive import Adaptive
    from slimc.compiler.compile import Compiled
    from slimc.compiler.engine import EngineReport
    from slimc.compiler.export import ExportReport
    from slimc.compiler.options import CompileOptions
    from slimc.compiler.verify import Verdict
    from slimc.emit.precision import Precision
    from slimc.evaluate.latency import Measurement
    from slimc.evaluate.progress import Progress
    from slimc.files.metadata import Metadata
    from slimc.models.system import Network, Variant
    from slimc.targets.target import Target
    from slimc.targets.tuning import Tuning

__all__ = [
    "BudgetError",
    "CheckpointError",
    "Compiled",
    "EngineReport",
    "ExportReport",
    "Measurement",
    "Metadata",
    "MismatchError",
    "MissingError",
    "ModelFileError",
    "Network",
    "OptionError",
    "OutputError",
    "SlimcError",
    "Target",
    "Tuning",
    "UserError",
    "Verdict",
    "bench",
    "build_engine",
    "compile",
    "export",
    "find_target",
    "load",
    "read_metadata",
    "tune",
    "verify",
]

# Classes by the module that has them: imported when they are asked for.
_LAZY = {
    "Compiled": "slimc.compiler.compile",
    "EngineReport": "slimc.compiler.engine",
    "ExportReport": "slimc.compiler.export",
    "Measurement": "slimc.evaluate.latency",
    "Metadata": "slimc.files.metadata",
    "Network": "slimc.models.system",
    "Target": "slimc.targets.target",
    "Tuning": "slimc.targets.tuning",
    "Verdict": "slimc.compiler.verify",
}


def load(checkpoint: str | Path, *, ema: bool | None = None, **options: Any) -> Network:  # noqa: ANN401
    """Read a searched checkpoint and understand it.

    Args:
        checkpoint: a .pth, .pth.tar, .pt or .safetensors file of ViT-Slim, DynamicViT or AdaViT. Nothing in it is executed.
        ema: take the averaged weights; None leaves it to the system's own evaluation.
        options: what the checkpoint does not say itself: ``budget=0.7``, ``keep_rate=0.7``, ``num_heads=6`` and
            whatever else ``slimc export --help`` lists for its system, with underscores.

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
    from slimc.compiler.load import load_network

    return load_network(Path(checkpoint), options, ema=ema)


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
    check_passes: bool = False,
    progress: Progress | None = None,
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
        check_passes: evaluate the network in float64 after every pass, and compare to 1e-9.
        progress: shows what is going on (`slimc.evaluate.progress`).

    Raises:
        OptionError: an option cannot be used with this network.

    Example:
        >>> slim = slimc.compile(slimc.load("digits.pth"), target="generic")
        >>> f"{slim.slim.params:,} of {slim.dense.params:,} parameters"
        '197,321 of 316,490 parameters'
        >>> [layer.hidden for layer in slim.structure.layers][:3]
        [221, 196, 216]
    """
    from slimc.compiler.compile import compile_network
    from slimc.evaluate.progress import silent

    options = _compile_options(
        target, threads, tuning, variant, batch_size, precision, opset, adaptive, None if data is None else Path(data)
    )
    return compile_network(network, options, check=check_passes, progress=progress or silent)


def export(
    network: str | Path | Network,
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
    verify: bool = True,
    check_passes: bool = False,
    ema: bool | None = None,
    progress: Progress | None = None,
    **options: Any,  # noqa: ANN401
) -> ExportReport:
    """Load, compile and export in one go, which needs the least memory; see `load`, `compile` and `Compiled.export`.

    Args:
        network: a checkpoint, or what `load` returned.
        output: the model to write, which ends in .onnx; its reference lands beside it.
        target: see `compile`.
        threads: see `compile`.
        tuning: see `compile`.
        variant: see `compile`.
        batch_size: see `compile`.
        precision: see `compile`.
        opset: see `compile`.
        adaptive: see `compile`.
        data: see `compile`.
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
    from slimc.compiler.export import check_export
    from slimc.compiler.export import export as export_network
    from slimc.evaluate.progress import Stopwatch, silent

    how = _compile_options(
        target, threads, tuning, variant, batch_size, precision, opset, adaptive, None if data is None else Path(data)
    )
    shown = progress or silent
    watch = Stopwatch(shown)
    if isinstance(network, (str, Path)):
        check_export(Path(network), Path(output), how, verify=verify, check_passes=check_passes)
        with watch.stage("load", f"reading {Path(network).name}"):
            network = load(network, ema=ema, **options)
    else:
        _refuse_loading(network, options, ema)
    return export_network(
        network, Path(output), how, verify=verify, check_passes=check_passes, watch=watch, progress=shown
    )


def verify(
    artefact: str | Path,
    *,
    against: str | Path | None = None,
    data: str | Path | None = None,
    backend: str = "auto",
    threads: int | None = None,
    tolerance: float | None = None,
    ema: bool | None = None,
    progress: Progress | None = None,
    **options: Any,  # noqa: ANN401
) -> Verdict:
    """Compare a model or an engine with the PyTorch network.

    Args:
        artefact: an ONNX model or an engine that slimc made.
        against: a checkpoint, an ONNX model or a reference (.npz); None takes the reference beside the artefact.
        data: a folder of further images, for a checkpoint or a model to compare with.
        backend: "auto", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino" or "openvino-bf16".
        threads: of one inference on a CPU.
        tolerance: as a share of the logits' spread; None for that of the artefact's precision.
        ema: see `load`, where `against` is a checkpoint.
        progress: shows what is going on.
        options: see `load`, where `against` is a checkpoint.

    Raises:
        ModelFileError, OptionError: something cannot be used, or does not belong together.
        MissingError: the back end or a GPU is not on this machine.

    Example:
        >>> slimc.verify("digits.onnx").passed
        True
    """
    from slimc.compiler.verify import Against
    from slimc.compiler.verify import verify as verify_artefact
    from slimc.evaluate.progress import silent

    source = Against(None if against is None else Path(against), None if data is None else Path(data), options, ema)
    path = Path(artefact)
    with (progress or silent)(f"running {path.name}") as advance:
        return verify_artefact(path, source, backend=backend, threads=threads, tolerance=tolerance, advance=advance)


def build_engine(
    model: str | Path | Network,
    output: str | Path | None = None,
    *,
    precision: Precision | None = None,
    target: str | Sequence[str] | None = None,
    backend: str = "auto",
    fused_attention: bool = True,
    verify: bool = True,
    batch_size: int | None = None,
    ema: bool | None = None,
    progress: Progress | None = None,
    **options: Any,  # noqa: ANN401
) -> EngineReport:
    """Build a TensorRT or TensorRT-RTX engine, and compare it with the reference where there is a GPU.

    Args:
        model: an ONNX model that slimc wrote, a checkpoint, or what `load` returned.
        output: the engine to write, which ends in .engine; None puts it into the current directory under the model's name.
        precision: of matrix products: "fp32", "fp16" or "bf16"; None takes the model's own, "fp32" for a checkpoint.
        target: one or several of "sm75" ... "sm121"; None takes this machine's GPU, else what the model was exported for,
            else SM80 and newer.
        backend: "auto", "tensorrt" (on the GPU that it is for) or "tensorrt-rtx" (for any, without one).
        fused_attention: False keeps TensorRT from fusing attention.
        verify: compare with the reference.
        batch_size: images in a batch, for a checkpoint; None is 1.
        ema: see `load`, for a checkpoint.
        progress: shows what is going on.
        options: see `load`, for a checkpoint.

    Raises:
        ModelFileError: the model is not slimc's, or does not build.
        OptionError: the options contradict the model or the machine.
        MissingError: no TensorRT, or no GPU where it needs one.
        MismatchError: the engine computes something else than the reference says.

    Example:
        >>> built = slimc.build_engine("digits.pth", "digits.engine", precision="fp16", target="sm89")  # needs slimc[rtx]
        >>> sum(block.fused for block in built.facts.blocks)
        4
    """
    from slimc.compiler.engine import EngineOptions, build_from_network, check_engine
    from slimc.compiler.engine import build_engine as build_from_model
    from slimc.evaluate.progress import silent
    from slimc.models.options import said

    targets = () if target is None else (target,) if isinstance(target, str) else tuple(target)
    targets = tuple(dict.fromkeys(name.lower() for name in targets))
    how = EngineOptions(backend, targets, precision, fused_attention, verify)
    shown = progress or silent
    source = Path(model) if isinstance(model, (str, Path)) else model.path
    path = Path(Path(source.name.removesuffix(".tar")).with_suffix(".engine")) if output is None else Path(output)
    if source.suffix == ".onnx":
        given = [*said(options, ema), *(["--batch-size"] if batch_size is not None else [])]
        if given:
            raise OptionError(f"{given[0]}: says how to compile a checkpoint; {source} is compiled already")
        return build_from_model(source, path, how, progress=shown)
    if isinstance(model, (str, Path)):
        check_engine(path, how)
        with shown(f"reading {source.name}"):
            model = load(source, ema=ema, **options)
    else:
        _refuse_loading(model, options, ema)
    return build_from_network(model, path, how, batch_size=1 if batch_size is None else batch_size, progress=shown)


def bench(
    sources: str | Path | Iterable[str | Path],
    *,
    backend: str | Sequence[str] = "auto",
    threads: int | None = None,
    batch_size: int | Sequence[int] | None = None,
    seconds: float = 3.0,
    target: str | None = None,
    tuning: str | Path | None = None,
    precision: Precision | None = None,
    ema: bool | None = None,
    progress: Progress | None = None,
    **options: Any,  # noqa: ANN401
) -> list[Measurement]:
    """Time models, engines and checkpoints in interleaved rounds; a checkpoint as its dense, masked and slim networks.

    Args:
        sources: what to time.
        backend: one or several: what runs them. See `verify`; for checkpoints also "tensorrt" and "tensorrt-rtx".
        threads: of one inference on a CPU; None leaves the choice to the back end.
        batch_size: one or several, for checkpoints; None is 1.
        seconds: to spend on each network, warming up included.
        target: what checkpoints are compiled for; None takes what suits the back end.
        tuning: a file that `tune` wrote, for checkpoints.
        precision: of checkpoints' matrix products; None is "fp32".
        ema: see `load`, for checkpoints.
        progress: shows what is going on.
        options: see `load`, for checkpoints.

    Returns:
        One measurement a network, in the order of `sources`.

    Raises:
        OptionError, ModelFileError, CheckpointError: something cannot be used.
        MissingError: a back end or a GPU is not on this machine.

    Example:
        >>> times = slimc.bench(["digits.pth"], threads=1, seconds=0.2)
        >>> [measurement.subject.variant for measurement in times]
        ['dense', 'masked', 'slim']
    """
    import tempfile

    from slimc.compiler.variants import BenchOptions, subjects
    from slimc.evaluate.latency import check_seconds, measure
    from slimc.evaluate.progress import silent

    check_seconds(seconds)
    how = BenchOptions(
        backends=(backend,) if isinstance(backend, str) else tuple(backend),
        threads=threads,
        batch_sizes=() if batch_size is None else (batch_size,) if isinstance(batch_size, int) else tuple(batch_size),
        target=target,
        tuning=None if tuning is None else Path(tuning),
        precision=precision,
        model_options=options,
        ema=ema,
    )
    paths = [Path(sources)] if isinstance(sources, (str, Path)) else [Path(source) for source in sources]
    with tempfile.TemporaryDirectory(prefix="slimc-") as directory:
        found = subjects(paths, how, Path(directory), progress or silent)
        return measure(found, seconds, progress=progress or silent)


def tune(
    output: str | Path | None = None,
    *,
    threads: int = 1,
    backend: str = "onnxruntime",
    progress: Progress | None = None,
) -> Tuning:
    """Measure on this machine what heads cost alone and in groups; takes a quarter of a minute.

    Args:
        output: a .json file for `compile`'s `tuning`; None writes none.
        threads: that will run the model.
        backend: "onnxruntime" or "openvino".
        progress: shows what is going on.

    Raises:
        OptionError: the back end is no CPU's, or there are no threads.
        OutputError: `output` cannot be written.
        MissingError: the back end is not on this machine.

    Example:
        >>> slimc.tune("tuning.json", threads=1).costs.threads  # doctest: +SKIP  (takes a quarter of a minute)
        1
    """
    from slimc.evaluate.progress import silent
    from slimc.evaluate.tune import tune as measure_costs

    return measure_costs(
        None if output is None else Path(output), threads=threads, backend=backend, progress=progress or silent
    )


def read_metadata(model: str | Path) -> Metadata:
    """What an ONNX model that slimc wrote says about itself: where it comes from, what is left of it, how to feed it.

    Raises:
        ModelFileError: it is no ONNX model, or slimc did not write it.

    Example:
        >>> metadata = slimc.read_metadata("digits.onnx")
        >>> metadata.variant, metadata.target, metadata.structure.image
        ('slim', 'cpu', (56, 56))
    """
    from slimc.files.metadata import read_metadata as read

    return read(Path(model))


def find_target(name: str, *, threads: int | None = None, tuning: str | Path | None = None) -> Target:
    """The target called `name`, for `compile` and `export`.

    Args:
        name: "generic", "cpu", "sm75", ...
        threads: of one inference, for "cpu".
        tuning: a file that `tune` wrote, for "cpu".

    Raises:
        OptionError: there is no such target, or the others say nothing to it.

    Example:
        >>> slimc.find_target("sm89").width_multiple
        8
    """
    from slimc.targets.target import find_target as find

    return find(name, threads=threads, tuning=None if tuning is None else Path(tuning))


def _refuse_loading(network: Network, options: dict[str, Any], ema: bool | None) -> None:
    if options or ema is not None:
        raise OptionError(
            f"{', '.join(options) or 'ema'}: say how to load a checkpoint; {network.path} is loaded already"
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
    data: Path | None,
) -> CompileOptions:
    from slimc.compiler.adaptive import find_adaptive
    from slimc.compiler.options import CompileOptions, check_measured

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
        data=data,
    )
    check_measured(options, measured)
    return options


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the module has
    if name == "__version__":
        from slimc.files.version import VERSION

        return VERSION
    if name not in _LAZY:
        raise AttributeError(f"module 'slimc' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
