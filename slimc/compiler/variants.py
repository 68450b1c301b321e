"""What there is to time: artefacts as they are, and a checkpoint as its dense, masked and slim networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from slimc.backends import cuda
from slimc.backends.choose import open_session
from slimc.emit.precision import Precision
from slimc.errors import ModelFileError, OptionError
from slimc.evaluate.latency import Subject
from slimc.files.metadata import read_metadata
from slimc.models.options import ModelOptions

if TYPE_CHECKING:
    from slimc.compiler.export import Step

VARIANTS = ("dense", "masked", "slim")
_ENGINE_BACKENDS = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class BenchOptions:
    """What runs the networks, and what a checkpoint is compiled to. No target: what suits the back end."""

    backends: tuple[str, ...] = ("auto",)
    threads: int | None = None
    batch_sizes: tuple[int, ...] = ()
    target: str | None = None
    tuning: Path | None = None
    precision: Precision = "fp32"
    model_options: ModelOptions = field(default_factory=ModelOptions)
    ema: bool | None = None


def subjects(paths: Sequence[Path], options: BenchOptions, directory: Path, step: Step) -> list[Subject]:
    """Sessions for `paths`; what a checkpoint is compiled to lies in `directory`.

    Raises:
        UserError: a file or option cannot be used, or a back end is missing.
    """
    if set(options.backends) & set(_ENGINE_BACKENDS):
        cuda.require_gpu()
    found: list[Subject] = []
    for number, path in enumerate(paths):
        if path.suffix in (".onnx", ".engine"):
            if options.batch_sizes:
                raise OptionError(
                    f"--batch-size: the shapes of {path} are static; only checkpoints are compiled for it"
                )
            found.extend(_artefact(path, backend, options) for backend in options.backends)
        else:
            folder = directory / str(number)
            folder.mkdir()
            for size in options.batch_sizes or (1,):
                for backend in options.backends:
                    found.extend(_checkpoint(path, backend, size, options, folder, step))
    return found


def _artefact(path: Path, backend: str, options: BenchOptions) -> Subject:
    session = open_session(path, backend, threads=options.threads)
    name = f"{path.name} [{session.backend}]"
    if path.suffix == ".engine":
        return Subject(name, session)
    threads = options.threads
    try:
        metadata = read_metadata(path)
    except ModelFileError:  # a model of somebody else is timed all the same
        return Subject(name, session, threads=threads)
    family = f"{metadata.source_sha256[:8]}, batch {session.inputs[0].shape[0]} [{session.backend}]"
    macs = _fixed_macs(metadata.system, metadata.slim.macs)
    return Subject(name, session, family, metadata.variant, macs, metadata.precision, threads)


def _fixed_macs(system: str, macs: int) -> int | None:
    """MACs that every image costs; none for AdaViT, whose graphs compute what an image asks for and no more."""
    return None if system == "ada_vit" else macs


def _checkpoint(
    path: Path, backend: str, batch_size: int, options: BenchOptions, folder: Path, step: Step
) -> list[Subject]:
    """The three networks of a checkpoint on one back end, one of which slimc made small."""
    found = []
    for variant in VARIANTS:
        with step(f"compiling {path.name}, {variant}, batch {batch_size}"):
            model, macs = _compiled(path, variant, backend, batch_size, options, folder)
        session = open_session(model, backend if model.suffix == ".onnx" else "auto", threads=options.threads)
        name = f"{path.stem} {variant}, batch {batch_size}"
        family = f"{path.stem}, batch {batch_size} [{session.backend}]"
        threads = options.threads if model.suffix == ".onnx" else None
        subject = Subject(f"{name} [{session.backend}]", session, family, variant, macs, options.precision, threads)
        found.append(subject)
    return found


def _compiled(
    path: Path, variant: str, backend: str, batch_size: int, options: BenchOptions, folder: Path
) -> tuple[Path, int | None]:
    """The ONNX model or engine of one variant, and its multiply-accumulates per image where all cost the same."""
    from slimc.compiler.export import compile_checkpoint, emit_onnx
    from slimc.compiler.options import ExportOptions
    from slimc.emit.file import write_model
    from slimc.targets.target import find_target

    builds = backend in _ENGINE_BACKENDS
    name = options.target or ("sm80" if builds or "cuda" in backend else "cpu")
    target = find_target(name, threads=options.threads, tuning=options.tuning)
    export = ExportOptions(
        variant=variant,  # type: ignore[arg-type]
        batch_size=batch_size,
        target=target,
        precision="fp32" if builds else options.precision,
    )
    model = folder / f"{variant}-{batch_size}-{target.name}-{export.precision}.onnx"
    compiled, _ = compile_checkpoint(path, options.model_options, export, ema=options.ema)
    macs = _fixed_macs(compiled.searched.system, compiled.slim.macs)
    if not model.exists():
        write_model(emit_onnx(compiled, export), model)
    if not builds:
        return model, macs
    from slimc.compiler.engine import EngineOptions, build_engine

    engine = model.with_suffix(".engine")
    build_engine(model, engine, EngineOptions(backend, precision=options.precision))
    return engine, macs
