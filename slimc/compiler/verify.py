"""Does an artefact, a model or an engine, compute what the PyTorch network does?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from slimc.backends.base import image_input, run_outputs
from slimc.backends.choose import open_session
from slimc.compiler.limits import Limits
from slimc.compiler.outputs import with_outputs
from slimc.emit.precision import TOLERANCE
from slimc.errors import MismatchError, ModelFileError, OptionError
from slimc.evaluate.compare import Choices, compare_with
from slimc.evaluate.comparison import Comparison
from slimc.evaluate.kept_patches import run_selected
from slimc.evaluate.progress import Advance, unheard
from slimc.files.images import StreamedImages, readable_images, seeded_images
from slimc.files.reference import Reference, read_reference, reference_path
from slimc.models.options import said
from slimc.models.system import Variant
from slimc.models.systems import decides

_SEED = 0
_INPUTS = 4


@dataclass(frozen=True)
class Artefact:
    """What an ONNX model or engine says about itself; `source_sha256` is that of the checkpoint, `outputs` are names."""

    path: Path
    precision: str
    variant: str
    source_sha256: str
    outputs: tuple[str, ...] = ("logits",)


@dataclass(frozen=True, eq=False)
class Verdict:
    """The outcome for one artefact; without a comparison, `failure` says why nothing could be compared.

    `agreement` tells how far kept patches or decisions are those of the reference, for a model that makes any. `worst_file`
    is the image that the worst input is; none where that is a seeded one.
    """

    artefact: Artefact
    backend: str
    comparison: Comparison | None
    failure: str = ""
    agreement: Choices | None = None
    worst_file: Path | None = None

    @property
    def passed(self) -> bool:
        """Whether there was a comparison and it held."""
        return self.comparison is not None and self.comparison.passed


@dataclass(frozen=True)
class Against:
    """What to compare with: a reference, a float32 model or a checkpoint; none for the reference beside the artefact.

    `data` is a folder of further images, whose answers only a model or a checkpoint can give. `model_options` and `ema` say
    about a checkpoint what it does not say itself (`slimc.models.options`).
    """

    path: Path | None = None
    data: Path | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)
    ema: bool | None = None


def describe(path: Path) -> Artefact:
    """What the artefact at `path` says about itself.

    Raises:
        ModelFileError: it is neither a model nor an engine of slimc's.
    """
    if path.suffix == ".engine":
        from slimc.backends.engine_file import read_engine

        _, facts = read_engine(path)
        names = tuple(spec.name for spec in facts.outputs)
        return Artefact(path, facts.precision, facts.variant, facts.checkpoint_sha256, names)
    if path.suffix == ".onnx":
        from slimc.files.metadata import read_metadata

        metadata = read_metadata(path)
        names = tuple(output.name for output in metadata.outputs)
        return Artefact(path, metadata.precision, metadata.variant, metadata.source_sha256, names)
    raise ModelFileError(f"{path}: expected a file that ends in .onnx or .engine")


def verify_artefact(
    path: Path,
    against: Against,
    *,
    backend: str = "auto",
    threads: int | None = None,
    tolerance: float | None = None,
    advance: Advance = unheard,
) -> Verdict:
    """Run the artefact at `path` and compare.

    Args:
        path: an ONNX model or an engine.
        against: what to compare with.
        backend: what runs it, see `slimc.backends.choose`.
        threads: of one inference, on a CPU.
        tolerance: as a share of an output's spread; None for that of the artefact's precision.
        advance: is told how many images a checkpoint's PyTorch network has run.

    Raises:
        ModelFileError, OptionError: something cannot be used, or does not belong together.
        MissingError: the back end or a GPU is not on this machine.
    """
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise OptionError(
            f"--tolerance: {tolerance} is no share of an output's spread; expected a number of at least 0"
        )
    artefact = describe(path)
    reference = expected(artefact, against, advance)
    rounded = artefact.precision != "fp32"  # where nothing but ONNX Runtime's CPU runs it
    open_model = partial(open_session, backend=backend, threads=threads, rounded=rounded)
    name = open_model(path).backend
    precision = "bf16" if backend.endswith("bf16") else artefact.precision
    try:
        found, agreement = compare_with(
            path,
            reference,
            TOLERANCE[precision] if tolerance is None else tolerance,
            open_model=open_model,
            precision=precision,
            source=str(path),
        )
    except MismatchError as error:
        return Verdict(artefact, name, None, str(error))
    return Verdict(artefact, name, found, agreement=agreement, worst_file=reference.file_of(found.worst_input))


def expected(artefact: Artefact, against: Against, advance: Advance = unheard) -> Reference:
    """Inputs and the outputs that `artefact` should yield.

    Raises:
        ModelFileError: the reference is missing, damaged or of another model.
        OptionError: a folder of images was given, but nothing that knows the answers.
    """
    source = against.path
    if source is None or source.suffix in (".npz", ".onnx"):
        for option in said(against.model_options, against.ema):
            raise OptionError(f"{option}: says how to load a checkpoint; give it with --against")
    if source is None or source.suffix == ".npz":
        if against.data is not None:
            raise OptionError(
                "--data: needs --against CKPT or ONNX, which tell what the outputs of new images should be"
            )
        path = reference_path(artefact.path) if source is None else source
        reference = read_reference(path)
        _same_model(artefact, path, str(reference.facts.get("source_sha256")), str(reference.facts.get("variant")))
        return reference
    if source.suffix == ".onnx":
        return _from_model(artefact, source, against.data)
    return _from_checkpoint(artefact, source, against, advance)


def _same_model(artefact: Artefact, path: Path, sha256: str, variant: str) -> None:
    """Slim and masked networks compute the same; the dense one does not."""
    if sha256 != artefact.source_sha256:
        raise ModelFileError(f"{path}: of another checkpoint than {artefact.path}")
    if (variant == "dense") != (artefact.variant == "dense"):
        raise ModelFileError(f"{path}: of the {variant} network, but {artefact.path} is the {artefact.variant} one")


def _from_model(artefact: Artefact, source: Path, data: Path | None) -> Reference:
    from slimc.files.metadata import read_metadata

    metadata = read_metadata(source)
    _same_model(artefact, source, metadata.source_sha256, metadata.variant)
    files = [] if data is None else readable_images(data)
    channels = image_input(open_session(source), str(source)).shape[1]
    seeded = seeded_images(_INPUTS, metadata.structure.image, _SEED, channels)
    images = StreamedImages(seeded, tuple(files), metadata.preprocessing)
    if decides(metadata.system):
        raise OptionError(f"--against: {source} decides for each image; expected its checkpoint or a reference")
    if metadata.structure.selecting:
        selected = run_selected(source, images)
        return Reference(images, selected.outputs, {}, selected.kept)
    return Reference(images, run_outputs(open_session(source), images, str(source), artefact.outputs), {})


def _from_checkpoint(artefact: Artefact, source: Path, against: Against, advance: Advance) -> Reference:
    from slimc.compiler.load import load_network
    from slimc.compiler.reference import make_reference

    files = [] if against.data is None else readable_images(against.data)
    network = load_network(source, against.model_options, ema=against.ema)
    variant: Variant = "dense" if artefact.variant == "dense" else "masked"
    _same_model(artefact, source, network.sha256, variant)
    if variant == "dense" and variant not in network.variants:
        raise OptionError(f"--against: {source} holds the slim network alone, and {artefact.path} is the dense one")
    network = with_outputs(network, artefact.outputs, str(source))
    limits = _limits(artefact) if network.system.decides else None
    if network.limits is not None and (limits is None or limits != Limits.from_json(network.limits)):
        raise OptionError(f"--against: {source} has limits that {artefact.path} does not have")
    return make_reference(network, variant, 1, TOLERANCE["fp32"], files, limits, advance)


def _limits(artefact: Artefact) -> Limits | None:
    """The limits that a model which decides for each image was compiled with."""
    if artefact.path.suffix != ".onnx":
        raise OptionError(
            f"--against: {artefact.path} decides for each image, of which an engine tells nothing; verify its model"
        )
    from slimc.files.metadata import read_metadata

    found = read_metadata(artefact.path).details.get("limits")
    return None if found is None else Limits.from_json(found)
