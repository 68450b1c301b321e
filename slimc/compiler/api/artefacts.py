"""The library's functions on models and engines: verify, build, time, and tune for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimc.compiler.api.networks import load
from slimc.compiler.engine import EngineOptions, EngineReport, build_from_network, check_engine
from slimc.compiler.engine import build_engine as build_from_model
from slimc.compiler.load import load_network, refuse_loading
from slimc.compiler.outputs import read_names
from slimc.compiler.variants import bench_options, listed_paths, subjects
from slimc.compiler.verify import Against, Verdict, verify_artefact
from slimc.emit.precision import Precision
from slimc.errors import OptionError
from slimc.evaluate.latency import Measurement, check_seconds, measure
from slimc.evaluate.progress import Progress, silent
from slimc.files.output import default_output, scratch
from slimc.models.options import said
from slimc.models.system import Network

if TYPE_CHECKING:
    import torch


def verify(
    artefact: str | Path,
    *,
    against: str | Path | None = None,
    data: str | Path | None = None,
    backend: str = "auto",
    threads: int | None = None,
    tolerance: float | None = None,
    ema: bool | None = None,
    progress: Progress = silent,
    **options: Any,  # noqa: ANN401
) -> Verdict:
    """Compare a model or an engine with the PyTorch network.

    Args:
        artefact: an ONNX model or an engine that slimc made.
        against: a checkpoint, an ONNX model or a reference (.npz); None takes the reference beside the artefact.
        data: a folder of further images, for a checkpoint or a model to compare with.
        backend: "auto", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino" or "openvino-bf16".
        threads: of one inference on a CPU.
        tolerance: as a share of an output's spread; None for that of the artefact's precision.
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
    source = Against(None if against is None else Path(against), None if data is None else Path(data), options, ema)
    path = Path(artefact)
    with progress(f"running {path.name}") as advance:
        return verify_artefact(path, source, backend=backend, threads=threads, tolerance=tolerance, advance=advance)


def build_engine(
    model: str | Path | Network | torch.nn.Module,
    output: str | Path | None = None,
    *,
    precision: Precision | None = None,
    target: str | Sequence[str] | None = None,
    backend: str = "auto",
    fused_attention: bool = True,
    verify: bool = True,
    batch_size: int | None = None,
    outputs: str | Sequence[str] | None = None,
    ema: bool | None = None,
    progress: Progress = silent,
    **options: Any,  # noqa: ANN401
) -> EngineReport:
    """Build a TensorRT or TensorRT-RTX engine, and compare it with the reference where there is a GPU.

    Args:
        model: an ONNX model that slimc wrote, what `load` takes, or what it returned.
        output: the engine to write, which ends in .engine; None puts it into the current directory under the model's name.
        precision: of matrix products: "fp32", "fp16" or "bf16"; None takes the model's own, "fp32" for a checkpoint.
        target: one or several of "sm75" ... "sm121"; None takes this machine's GPU, else what the model was exported for,
            else SM80 and newer.
        backend: "auto", "tensorrt" (on the GPU that it is for) or "tensorrt-rtx" (for any, without one).
        fused_attention: False keeps TensorRT from fusing attention.
        verify: compare with the reference.
        batch_size: images in a batch, for a checkpoint; None is 1.
        outputs: see `compile`, for a checkpoint.
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
        6
    """
    targets = () if target is None else (target,) if isinstance(target, str) else tuple(target)
    targets = tuple(dict.fromkeys(name.lower() for name in targets))
    how = EngineOptions(backend, targets, precision, fused_attention, verify)
    if not isinstance(model, (str, Path, Network)):
        model, options, ema = load(model, ema=ema, **options), {}, None
    source = Path(model) if isinstance(model, (str, Path)) else model.path
    path = default_output(source, ".engine") if output is None else Path(output)
    if source.suffix == ".onnx":
        of_network = {"--batch-size": batch_size, "--outputs": outputs}
        given = [*said(options, ema), *(name for name, value in of_network.items() if value is not None)]
        if given:
            raise OptionError(f"{given[0]}: says how to compile a checkpoint; {source} is compiled already")
        return build_from_model(source, path, how, progress=progress)
    if isinstance(model, (str, Path)):
        check_engine(path, how)
        with progress(f"reading {source.name}"):
            model = load_network(source, options, ema=ema)
    else:
        refuse_loading(model, options, ema)
    size, names = 1 if batch_size is None else batch_size, read_names(outputs)
    return build_from_network(model, path, how, batch_size=size, outputs=names, progress=progress)


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
    outputs: str | Sequence[str] | None = None,
    ema: bool | None = None,
    progress: Progress = silent,
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
        outputs: see `compile`, for checkpoints.
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
    check_seconds(seconds)
    how = bench_options(backend, threads, batch_size, target, tuning, precision, options, ema, outputs)
    paths = listed_paths(sources)
    with scratch() as directory:
        found = subjects(paths, how, directory, progress)
        return measure(found, seconds, progress=progress)
