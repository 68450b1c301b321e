"""What there is to time: artefacts as they are, and a checkpoint as its dense, masked and slim networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimc.backends import cuda
from slimc.backends.choose import open_session, runs_on_cpu
from slimc.compiler.compile import compile_network
from slimc.compiler.engine import EngineOptions, build_engine
from slimc.compiler.export import emit_onnx
from slimc.compiler.half import narrow
from slimc.compiler.load import load_network
from slimc.compiler.options import CompileOptions, check_measured
from slimc.compiler.outputs import read_names, with_outputs
from slimc.emit.file import write_model
from slimc.emit.precision import Precision
from slimc.errors import ModelFileError, OptionError
from slimc.evaluate.latency import Subject
from slimc.evaluate.progress import Progress
from slimc.files.metadata import read_metadata, read_preprocessing
from slimc.models.options import said
from slimc.models.system import Network, Variant
from slimc.models.systems import decides
from slimc.targets.target import Target, find_target

VARIANTS: tuple[Variant, ...] = ("dense", "masked", "slim")
_ENGINE_BACKENDS = ("tensorrt", "tensorrt-rtx")
ARTEFACTS = (".onnx", ".engine")


@dataclass(frozen=True)
class BenchOptions:
    """What runs the networks, and what a checkpoint is compiled to.

    Attributes:
        backends: see `slimc.backends.choose`; for checkpoints also tensorrt and tensorrt-rtx.
        threads: of one inference on a CPU; none leaves the choice to the back end.
        batch_sizes: what checkpoints are compiled for; none given is 1.
        target: what checkpoints are compiled for; none takes what suits the back end.
        tuning: what ``slimc tune`` measured, for checkpoints.
        precision: of checkpoints' products; none is float32.
        model_options: what checkpoints do not say themselves (`slimc.models.options`).
        ema: take checkpoints' averaged weights; none leaves it to their system.
        outputs: of checkpoints, by name; none takes each network's own.
        outputs_said: what asked for them, for messages.
    """

    backends: tuple[str, ...] = ("auto",)
    threads: int | None = None
    batch_sizes: tuple[int, ...] = ()
    target: str | None = None
    tuning: Path | None = None
    precision: Precision | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)
    ema: bool | None = None
    outputs: tuple[str, ...] | None = None
    outputs_said: str = "--outputs"


def bench_options(
    backend: str | Sequence[str],
    threads: int | None,
    batch_size: int | Sequence[int] | None,
    target: str | None,
    tuning: str | Path | None,
    precision: Precision | None,
    model_options: Mapping[str, Any],
    ema: bool | None,
    outputs: str | Sequence[str] | None = None,
) -> BenchOptions:
    """The options, from one or several of what may be several."""
    return BenchOptions(
        backends=(backend,) if isinstance(backend, str) else tuple(backend),
        threads=threads,
        batch_sizes=() if batch_size is None else (batch_size,) if isinstance(batch_size, int) else tuple(batch_size),
        target=target,
        tuning=None if tuning is None else Path(tuning),
        precision=precision,
        model_options=model_options,
        ema=ema,
        outputs=read_names(outputs),
    )


def listed_paths(sources: str | Path | Iterable[str | Path]) -> list[Path]:
    """One path or several as a list."""
    return [Path(sources)] if isinstance(sources, (str, Path)) else [Path(source) for source in sources]


def subjects(paths: Sequence[Path], options: BenchOptions, directory: Path, progress: Progress) -> list[Subject]:
    """Sessions for `paths`; what a checkpoint is compiled to lies in `directory`.

    Raises:
        UserError: a file or option cannot be used, or a back end is missing.
    """
    _check_options(paths, options)
    _check_threads(paths, options)
    if set(options.backends) & set(_ENGINE_BACKENDS):
        cuda.require_gpu()
    found: list[Subject] = []
    for number, path in enumerate(paths):
        if path.suffix in ARTEFACTS:
            found.extend(_artefact(path, backend, options) for backend in options.backends)
            continue
        folder = directory / str(number)
        folder.mkdir()
        with progress(f"reading {path.name}"):
            network = load_network(path, options.model_options, ema=options.ema)
            network = with_outputs(network, options.outputs, options.outputs_said)
        for size in options.batch_sizes or (1,):
            for backend in options.backends:
                found.extend(_checkpoint(network, backend, size, options, folder, progress))
    return found


def _check_options(paths: Sequence[Path], options: BenchOptions) -> None:
    """Refuse options that would do nothing.

    Raises:
        OptionError: one of them says how to compile checkpoints, and there is none; or a back end runs engines only.
    """
    artefacts = [path for path in paths if path.suffix in ARTEFACTS]
    given = [
        *(["--batch-size"] if options.batch_sizes else []),
        *(["--target"] if options.target is not None else []),
        *(["--tuning"] if options.tuning is not None else []),
        *([f"--precision {options.precision}"] if options.precision is not None else []),
        *([options.outputs_said] if options.outputs is not None else []),
        *said(options.model_options, options.ema),
    ]
    if given and len(artefacts) == len(paths):
        raise OptionError(f"{given[0]}: says how to compile a checkpoint; {artefacts[0]} is compiled already")
    if options.batch_sizes and artefacts:
        raise OptionError(
            f"--batch-size: the shapes of {artefacts[0]} are static; only checkpoints are compiled for it"
        )
    engines = [backend for backend in options.backends if backend in _ENGINE_BACKENDS]
    models = [path for path in artefacts if path.suffix == ".onnx"]
    if engines and models:
        raise OptionError(f"--backend: {engines[0]} runs engines; slimc build-engine {models[0]} makes one")


def _check_threads(paths: Sequence[Path], options: BenchOptions) -> None:
    if options.threads is None:
        return
    if options.threads < 1:
        raise OptionError(f"--threads: {options.threads} threads cannot run anything; expected at least 1")
    if not any(runs_on_cpu(path, backend) for path in paths for backend in options.backends):
        raise OptionError("--threads: are those of a CPU, and nothing here runs on one")


def _artefact(path: Path, backend: str, options: BenchOptions) -> Subject:
    threads = options.threads if runs_on_cpu(path, backend) else None
    session = open_session(path, backend, threads=threads)
    name = f"{path.name} [{session.backend}]"
    if path.suffix == ".engine":
        from slimc.backends.engine_file import read_engine

        _, facts = read_engine(path)
        return Subject(
            name=name,
            session=session,
            variant=facts.variant,
            precision=facts.precision,
            target=",".join(facts.targets),
            label=path.name,
            preprocessing=None if facts.preprocessing is None else read_preprocessing(facts.preprocessing),
        )
    try:
        metadata = read_metadata(path)
    except ModelFileError:  # a model of somebody else is timed all the same
        return Subject(name, session, threads=threads, label=path.name)
    return Subject(
        name=name,
        session=session,
        family=f"{metadata.source_sha256[:8]}, batch {session.inputs[0].shape[0]} [{session.backend}]",
        variant=metadata.variant,
        macs=None if decides(metadata.system) else metadata.slim.macs,
        precision=metadata.precision,
        target=metadata.target,
        threads=threads,
        label=path.name,
        preprocessing=metadata.preprocessing,
    )


def _checkpoint(
    network: Network, backend: str, batch_size: int, options: BenchOptions, folder: Path, progress: Progress
) -> list[Subject]:
    """The three networks of a checkpoint on one back end, one of which slimc made small."""
    builds = backend in _ENGINE_BACKENDS
    aim = options.target or ("sm80" if builds or "cuda" in backend else "cpu")
    threads = options.threads if runs_on_cpu(network.path, backend) else None
    target = find_target(aim, threads=threads if aim == "cpu" else None, tuning=options.tuning)
    how = CompileOptions(target=target, precision=options.precision or "fp32")
    check_measured(how, None if options.tuning is None else "--tuning")
    found = []
    for variant in network.variants:
        name = network.path.resolve().name if network.path.is_dir() else network.path.stem
        label = f"{name} {variant}, batch {batch_size}"
        with progress(f"compiling {label}"):
            model, macs = _compiled(network, variant, backend, batch_size, target, options, folder)
        session = open_session(model, backend if model.suffix == ".onnx" else "auto", threads=threads)
        found.append(
            Subject(
                name=f"{label} [{session.backend}]",
                session=session,
                family=f"{name}, batch {batch_size} [{session.backend}]",
                variant=variant,
                macs=macs,
                precision=options.precision or "fp32",
                target=target.name,
                threads=threads,
                label=f"{name} {variant}",
                preprocessing=network.preprocessing,
                warnings=network.warnings,
            )
        )
    return found


def _compiled(
    network: Network,
    variant: Variant,
    backend: str,
    batch_size: int,
    target: Target,
    options: BenchOptions,
    folder: Path,
) -> tuple[Path, int | None]:
    """The ONNX model or engine of one variant, and its multiply-accumulates per image where all cost the same."""
    builds, precision = backend in _ENGINE_BACKENDS, options.precision or "fp32"
    written: Precision = "fp32" if builds else precision
    how = CompileOptions(variant=variant, batch_size=batch_size, target=target, precision=written)
    model = folder / f"{variant}-{batch_size}-{target.name}-{written}.onnx"
    compiled = compile_network(network, how)
    macs = None if network.system.decides else compiled.slim.macs
    if not model.exists():
        emitted = emit_onnx(compiled)
        narrow(emitted, written, None)
        write_model(emitted, model)
    if not builds:
        return model, macs
    engine = model.with_suffix(".engine")
    build_engine(model, engine, EngineOptions(backend, precision=precision))
    return engine, macs
