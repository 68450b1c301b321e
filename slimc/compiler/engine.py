"""Building an engine: the precision goes into the graph, the graph into a plan, and the plan is checked and described."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType

import onnx_ir as oir

from slimc.backends import cuda, ort, tensorrt, tensorrt_rtx
from slimc.backends.choose import open_session
from slimc.backends.engine_file import SUFFIX, EngineFacts, facts_path, write_facts
from slimc.backends.fusion import Kernel, attention_sites, summarise
from slimc.backends.tensorrt_common import Plan, library_version
from slimc.compiler.export import export_network
from slimc.compiler.half import Narrowed, narrow
from slimc.compiler.options import CompileOptions
from slimc.emit.file import write_model
from slimc.emit.precision import TOLERANCE, Precision, break_attention_fusion
from slimc.errors import MismatchError, MissingError, OptionError
from slimc.evaluate.compare import Choices, compare_with, not_written
from slimc.evaluate.comparison import Comparison, mismatch
from slimc.evaluate.progress import Progress, silent
from slimc.files.digest import sha256
from slimc.files.metadata import preprocessing_json, read_metadata
from slimc.files.output import check_output, replacing, scratch
from slimc.files.reference import read_reference, reference_path
from slimc.files.version import VERSION
from slimc.models.system import Network
from slimc.targets.target import find_target


@dataclass(frozen=True)
class EngineOptions:
    """How to build. No targets: this machine's GPU, else what the model was exported for, else SM80 and newer. No precision:
    that of the model.
    """

    backend: str = "auto"
    targets: tuple[str, ...] = ()
    precision: Precision | None = None
    fused_attention: bool = True
    verify: bool = True


@dataclass(frozen=True, eq=False)
class EngineReport:
    """What `build_engine` did.

    `comparison` is of the engine with the reference, none for the reason `unchecked`: no GPU, no reference, or not
    wanted. `exported_for` is the target of the ONNX model. `graph_comparison` is of the half-precision graph, run by ONNX
    Runtime on the CPU before anything is built, every half-precision result rounded; `agreement` tells how far that graph
    keeps the reference's patches or decides alike, where it does such things. `replaced` are files that were there before,
    `reference` is the copy of the model's reference beside the engine, none where there was none to copy, and `warnings` say
    what was not found out.
    """

    engine: Path
    facts: EngineFacts
    comparison: Comparison | None
    unchecked: str
    graph_comparison: Comparison | None
    exported_for: str
    agreement: Choices | None = None
    replaced: tuple[Path, ...] = ()
    reference: Path | None = None
    warnings: tuple[str, ...] = ()


def choose_backend(backend: str, targets: tuple[str, ...]) -> ModuleType:
    """The module of the back end to build with; ``auto`` is plain TensorRT where it can build, else TensorRT-RTX.

    Raises:
        OptionError: there is no such back end.
        MissingError: it is not on this machine.
    """
    if backend not in ("auto", tensorrt.NAME, tensorrt_rtx.NAME):
        raise OptionError(f"--backend: {backend!r} builds no engines; expected auto, tensorrt or tensorrt-rtx")
    if backend == tensorrt_rtx.NAME:
        tensorrt_rtx.library()
        return tensorrt_rtx
    if backend == tensorrt.NAME:
        tensorrt.library()
        tensorrt.this_target()
        return tensorrt
    with suppress(MissingError):
        tensorrt.library()
        if set(targets) <= {tensorrt.this_target()}:
            return tensorrt
    try:
        tensorrt_rtx.library()
    except MissingError:
        raise MissingError(
            "no TensorRT here: pip install 'slimc[rtx]' builds without a GPU, pip install 'slimc[gpu]' on the GPU"
        ) from None
    return tensorrt_rtx


def check_engine(output: Path, options: EngineOptions) -> None:
    """Find out before any work whether an engine can be written to `output` for the targets of `options`.

    Raises:
        OptionError: the suffix is not .engine, or a target is no GPU.
        OutputError: the output cannot be written.
    """
    check_output(output, (SUFFIX,))
    for target in options.targets:
        if not target.startswith("sm"):
            raise OptionError(f"--target: {target!r} is no GPU, which an engine is for; expected sm80, sm89, ...")


def build_engine(model: Path, output: Path, options: EngineOptions, *, progress: Progress = silent) -> EngineReport:
    """Build the engine `output` and its JSON from the ONNX `model` that slimc wrote.

    Where the machine has a GPU and there is a reference beside the model, the engine is compared with it before anything
    is written. The reference is copied beside the engine.

    Raises:
        ModelFileError: the model is not slimc's, or does not build; the message is the library's own.
        OptionError: the options contradict the model or the machine.
        MissingError: no TensorRT, or no GPU where it needs one.
        MismatchError: the engine computes something else than the reference says.
    """
    check_engine(output, options)
    metadata = read_metadata(model)
    backend = choose_backend(options.backend, options.targets)
    targets = options.targets or _default_targets(backend, metadata.target)
    if metadata.target == "cpu":
        wanted = next(iter(targets), "sm80")
        raise OptionError(f"{model}: was exported for CPUs; an engine wants slimc export --target {wanted}")
    with scratch() as directory:
        typed = directory / model.name
        with progress(f"writing {model.name} in {options.precision or metadata.precision}"):
            graph, precision, narrowed = _typed_model(model, typed, options)
        graph_comparison, agreement = None, None
        if options.verify and precision != "fp32" and reference_path(model).is_file() and ort.is_installed():
            with progress("comparing the graph with the reference"):
                graph_comparison, agreement = _check(typed, reference_path(model), precision, output)
        with progress(f"building for {', '.join(targets) or 'SM80 and newer'}"):
            plan: Plan = backend.build_plan(typed, targets, model)
    kernels: tuple[Kernel, ...] = backend.read_kernels(model, plan)
    facts = EngineFacts(
        slimc=VERSION,
        backend=backend.NAME,
        version=library_version(backend.library()),
        targets=targets,
        precision=precision,
        variant=metadata.variant,
        source_sha256=sha256(model),
        checkpoint_sha256=metadata.source_sha256,
        plan_sha256=hashlib.sha256(plan.data).hexdigest(),
        plan_bytes=len(plan.data),
        inputs=plan.inputs,
        outputs=plan.outputs,
        kernels=kernels,
        blocks=summarise(kernels, attention_sites(graph)),
        kept_float32=narrowed.kept,
        preprocessing=preprocessing_json(metadata.preprocessing, metadata.structure.image),
    )
    proven = EngineReport(
        output, facts, None, "", graph_comparison, metadata.target, agreement, warnings=narrowed.warnings
    )
    return _finish(model, plan, proven, options, progress)


def _default_targets(backend: ModuleType, exported_for: str) -> tuple[str, ...]:
    if backend is tensorrt:
        return (tensorrt.this_target(),)
    known = tensorrt_rtx.targets_known()
    if cuda.gpu_missing() is None and (here := cuda.open_device().target) in known:
        return (here,)
    return (exported_for,) if exported_for in known else ()


def _typed_model(model: Path, typed: Path, options: EngineOptions) -> tuple[oir.Graph, str, Narrowed]:
    """Write `model` in the wanted precision to `typed`; also its graph, the precision and what stays float32.

    How large values get is measured on the inputs of the reference beside `model`, where there is one.
    """
    content = oir.load(model)
    precision = content.metadata_props["slimc.precision"]
    narrowed = Narrowed({})
    if options.precision is not None and precision != "fp32":
        raise OptionError(f"--precision {options.precision}: {model} is {precision} already; give the float32 model")
    if options.precision is not None and options.precision != "fp32":
        beside = reference_path(model)
        images = read_reference(beside).images if beside.is_file() else None
        narrowed = narrow(content, options.precision, images)
        precision = options.precision
    if not options.fused_attention:
        break_attention_fusion(content.graph)
    write_model(content, typed)
    return content.graph, precision, narrowed


def _finish(model: Path, plan: Plan, report: EngineReport, options: EngineOptions, progress: Progress) -> EngineReport:
    """Check the plan where that can be done, and write it, its JSON and the reference together; `report`, completed."""
    output, facts = report.engine, report.facts
    reference, copied = reference_path(model), reference_path(output)
    targets = [output, facts_path(output)]
    if reference.is_file() and reference.resolve() != copied.resolve():
        targets.append(copied)
    replaced = tuple(path for path in targets if path.exists())
    with replacing(*targets) as temporary:
        temporary[0].write_bytes(plan.data)
        write_facts(temporary[1], facts)
        if len(temporary) > 2:
            shutil.copyfile(reference, temporary[2])
        unchecked = _why_unchecked(reference, options, facts.targets)
        comparison = None
        if not unchecked:
            with progress("comparing with the reference"):
                comparison, _ = _check(temporary[0], reference, facts.precision, output)
    return replace(
        report,
        comparison=comparison,
        unchecked=unchecked,
        replaced=replaced,
        reference=copied if copied in targets else None,
    )


def _why_unchecked(reference: Path, options: EngineOptions, targets: tuple[str, ...]) -> str:
    if not options.verify:
        return "not wanted"
    if not reference.is_file():
        return f"there is no {reference.name}"
    missing = cuda.gpu_missing()
    if missing is None and targets and (here := cuda.open_device().target) not in targets:
        return f"this GPU is {here}"
    return missing or ""


def _check(artefact: Path, reference: Path, precision: str, output: Path) -> tuple[Comparison, Choices | None]:
    """Compare an engine, or the graph that it is to be built from, with the reference."""
    with not_written(output):
        found, agreement = compare_with(
            artefact,
            read_reference(reference),
            TOLERANCE[precision],
            open_model=partial(open_session, rounded=precision != "fp32"),
            precision=precision,
            source=str(output),
        )
    if not found.passed:
        kind, hint = ("engine", "; try --no-fused-attention") if artefact.suffix == SUFFIX else ("graph", "")
        raise MismatchError(
            f"{output}: not written: the {kind} differs from the PyTorch network by {mismatch(found)} on input "
            f"{found.worst_input}, more than {found.tolerance:.0e}{hint}"
        )
    return found, agreement


def build_from_network(
    network: Network,
    output: Path,
    options: EngineOptions,
    *,
    batch_size: int = 1,
    outputs: tuple[str, ...] | None = None,
    progress: Progress = silent,
) -> EngineReport:
    """Export `network` for the first target and build an engine from that; see `build_engine`."""
    check_engine(output, options)
    backend = choose_backend(options.backend, options.targets)
    targets = options.targets or _default_targets(backend, "")
    with scratch() as directory:
        model = directory / f"{output.stem}.onnx"
        how = CompileOptions(batch_size=batch_size, target=find_target((*targets, "sm80")[0]), outputs=outputs)
        export_network(network, model, how, verify=options.verify, progress=progress)
        return build_engine(model, output, options, progress=progress)
