"""The main job: a checkpoint becomes a small, verified ONNX model with a reference beside it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as oir

from slimc import ir
from slimc.backends import ort
from slimc.compiler import adaptive as ways
from slimc.compiler import load as frontend
from slimc.compiler.adaptive import Adaptive
from slimc.compiler.limits import Limits
from slimc.compiler.options import ExportOptions, check_options
from slimc.compiler.pipeline import check_passes, compile_model, passes_for
from slimc.compiler.reference import SEED, make_reference, shipped_part
from slimc.emit.file import data_path, write_model
from slimc.emit.model import emit
from slimc.emit.precision import to_half
from slimc.errors import CheckpointError, MismatchError, OptionError
from slimc.evaluate.logits import Comparison
from slimc.evaluate.selections import Choices, compare_with
from slimc.files.checkpoint import Checkpoint
from slimc.files.images import image_files, seeded_images
from slimc.files.metadata import Metadata, to_props
from slimc.files.output import check_writable, replacing
from slimc.files.reference import Reference, reference_path, write_reference
from slimc.files.structure import Structure, describe
from slimc.models.options import ModelOptions, SearchedModel
from slimc.passes.rewrite import Pass
from slimc.targets.count import Counts, count

Step = Callable[[str], AbstractContextManager[None]]


def silent(_text: str) -> AbstractContextManager[None]:
    """A step that shows nothing."""
    return nullcontext()


@dataclass(frozen=True, eq=False)
class Compiled:
    """A checkpoint compiled in memory: the model to emit, its structure and what was counted.

    `adaptive` and `limits` are how the decisions of an image were compiled, if there are any and they were limited.
    """

    checkpoint: Checkpoint
    searched: SearchedModel
    model: ir.Model
    structure: Structure
    dense: Counts
    slim: Counts
    pass_errors: Mapping[str, float] | None = None
    adaptive: Adaptive | None = None
    limits: Limits | None = None


@dataclass(frozen=True, eq=False)
class ExportReport:
    """What `export` did; `comparison` is over all inputs, seeded and from the data folder."""

    onnx: Path
    reference: Path
    compiled: Compiled
    comparison: Comparison | None
    seconds: Mapping[str, float]
    agreement: Choices | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as the keys of ``--json``."""
        compiled, found = self.compiled, self.comparison
        result: dict[str, Any] = {
            "onnx": str(self.onnx),
            "reference": str(self.reference),
            "system": compiled.searched.system,
            **compiled.searched.settings,
            "params": {"dense": compiled.dense.params, "slim": compiled.slim.params},
            "macs": {"dense": compiled.dense.macs, "slim": compiled.slim.macs},
            "verify": None if found is None else _verify_json(found, self.agreement),
            "seconds": dict(self.seconds),
        }
        if compiled.adaptive is not None:
            result["adaptive"] = compiled.adaptive.name
        if compiled.limits is not None:
            result["limits"] = compiled.limits.to_json()
        if compiled.pass_errors is not None:
            result["passes"] = dict(compiled.pass_errors)
        return result


def _verify_json(found: Comparison, agreement: Choices | None) -> dict[str, Any]:
    return {
        "max_abs": found.max_abs,
        "max_rel": found.max_rel,
        "cosine": found.cosine,
        "top1_agreement": found.top1_agreement,
        "inputs": found.inputs,
        "worst_input": found.worst_input,
        "tolerance": found.tolerance,
        "passed": found.passed,
        **({} if agreement is None else {agreement.key: asdict(agreement)}),
    }


class _Stopwatch:
    """Seconds by the name of the stage they were spent in."""

    def __init__(self, step: Step) -> None:
        self.seconds: dict[str, float] = {}
        self._step = step

    @contextmanager
    def stage(self, name: str, text: str) -> Iterator[None]:
        start = time.perf_counter()
        with self._step(text):
            yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def compile_checkpoint(
    path: Path,
    model_options: ModelOptions,
    options: ExportOptions,
    *,
    ema: bool | None = None,
    step: Step = silent,
) -> tuple[Compiled, dict[str, float]]:
    """Read and compile the checkpoint at `path`; also the seconds that loading and passes took."""
    watch = _Stopwatch(step)
    with watch.stage("load", f"reading {path.name}"):
        checkpoint, searched = frontend.load(path, model_options, ema=ema)
    adaptive = ways.check(options.adaptive, searched, options.target, options.batch_size, options.data)
    limits: Limits | None = None
    files = image_files(options.data) if adaptive is not None and options.data is not None else []
    if adaptive is not None and adaptive.capacity and options.variant == "slim":
        with watch.stage("calibrate", f"running the network on {len(files)} images"):
            limits = ways.calibrate(searched, files, adaptive.quantile)
    rules = options.rules
    passes = passes_for(rules, options.batch_size)
    with watch.stage("passes", "running the passes"):
        model = _variant(path, searched, options, (*(ways.limiting_passes(limits) if limits else ()), *passes))
        dense = count(searched.dense, rules)
        compiled = Compiled(
            checkpoint=checkpoint,
            searched=searched,
            model=model,
            structure=describe(model, searched.masked, searched.dense, rules),
            dense=dense,
            slim=count(model, rules),
            adaptive=adaptive,
            limits=limits,
        )
    if options.check_passes:
        with watch.stage("check_passes", "checking every pass in float64"):
            images = seeded_images(1, searched.masked.image, SEED)
            # Limits change what an image computes that exceeds them; the passes behind them change nothing.
            errors = check_passes(ways.limited(searched.masked, limits) if limits else searched.masked, passes, images)
            compiled = replace(compiled, pass_errors=errors)
    return compiled, watch.seconds


def _variant(path: Path, searched: SearchedModel, options: ExportOptions, passes: tuple[Pass, ...]) -> ir.Model:
    if options.variant != "slim":
        return compile_model(searched.masked if options.variant == "masked" else searched.dense, ())
    try:
        with np.errstate(over="raise", invalid="raise"):
            return compile_model(searched.masked, passes)
    except FloatingPointError:
        raise CheckpointError(f"{path}: weights so large that products of them overflow: a damaged file?") from None


def export(
    path: Path,
    output: Path,
    model_options: ModelOptions,
    options: ExportOptions,
    *,
    ema: bool | None = None,
    step: Step = silent,
) -> ExportReport:
    """Compile the checkpoint at `path` into the ONNX model `output` and its reference, verified.

    Nothing is written unless everything succeeds. `step` shows what is going on while the body of its context runs.

    Raises:
        UserError: bad input, bad options or an output that cannot be written.
        MismatchError: the ONNX model differs from the PyTorch network by more than the tolerance.
        MissingError: ONNX Runtime is not installed and verification was asked for.
    """
    start = time.perf_counter()
    check_options(options)
    check_writable(output)
    if output.exists() and path.exists() and output.samefile(path):
        raise OptionError(f"--output: {output} is the checkpoint itself; expected another file")
    files = image_files(options.data) if options.data is not None else []
    compiled, seconds = compile_checkpoint(path, model_options, options, ema=ema, step=step)
    watch = _Stopwatch(step)
    targets = (output, data_path(output), reference_path(output))
    with replacing(*targets) as (onnx_temporary, _, reference_temporary):
        with watch.stage("emit", f"writing {output.name}"):
            model = emit_onnx(compiled, options)
            # Only the graph holds the slim weights from here on, so that writing can release them.
            searched, compiled = compiled.searched, _without_weights(compiled)
            write_model(model, onnx_temporary)
            del model
            gc.collect()  # the graph's cycles
        with watch.stage("verify", "comparing with the PyTorch network"):
            reference = make_reference(compiled.checkpoint, searched, options, files, compiled.limits)
            comparison, agreement = None, None
            if options.verify:
                comparison, agreement = verify_file(onnx_temporary, reference, options, output)
            write_reference(reference_temporary, shipped_part(reference))
    total = {**seconds, **watch.seconds, "total": time.perf_counter() - start}
    return ExportReport(output, reference_path(output), compiled, comparison, total, agreement)


def _without_weights(compiled: Compiled) -> Compiled:
    """`compiled` without the slim weights."""
    return replace(compiled, model=replace(compiled.model, blocks=()))


def emit_onnx(compiled: Compiled, options: ExportOptions) -> oir.Model:
    """The compiled model as ONNX, with its metadata."""
    conditional = compiled.adaptive is not None and compiled.adaptive.conditional
    model = emit(
        compiled.model,
        options.rules,
        batch_size=options.batch_size,
        opset=options.opset,
        conditional=conditional and options.variant == "slim",
    )
    searched = compiled.searched
    details = dict(searched.details)
    if compiled.adaptive is not None and options.variant == "slim":
        details["adaptive"] = compiled.adaptive.name
    if options.rules.tuned and options.variant == "slim":
        details["tuned"] = options.rules.tuned
    if compiled.limits is not None:
        details["limits"] = compiled.limits.to_json()
    metadata = Metadata(
        source_sha256=compiled.checkpoint.sha256,
        system=searched.system,
        variant=options.variant,
        target=options.target.name,
        settings=searched.settings,
        details=details,
        dense=compiled.dense,
        slim=compiled.slim,
        preprocessing=searched.preprocessing,
        structure=compiled.structure,
    )
    model.metadata_props.update(to_props(metadata))
    model.producer_version = metadata.version
    if options.precision != "fp32":
        to_half(model, options.precision)
    return model


def verify_file(
    path: Path, reference: Reference, options: ExportOptions, output: Path
) -> tuple[Comparison, Choices | None]:
    """Compare the ONNX model at `path`, which is to become `output`, with `reference` in ONNX Runtime.

    Also how far what it chooses agrees, where it selects patches or decides what runs.

    Raises:
        MismatchError: they differ by more than the tolerance.
    """
    found, agreement = compare_with(
        path, reference, options.tolerance, open_model=ort.load, precision=options.precision, source=str(output)
    )
    if not found.passed:
        raise MismatchError(
            f"{output}: not written: the ONNX model differs from the PyTorch network by {found.max_rel:.2e} of the logits' "
            f"spread on input {found.worst_input}, more than {found.tolerance:.0e}"
        )
    return found, agreement
