"""A compiled network becomes an ONNX model with a reference beside it, verified before anything is written."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnx_ir as oir

from slimc.backends import ort
from slimc.compiler.compile import Compiled, compile_network
from slimc.compiler.export_slim import SUFFIX as SLIM_SUFFIX
from slimc.compiler.export_slim import check_slim_options, export_slim
from slimc.compiler.half import narrow
from slimc.compiler.labelled import LabelledComparison, compare_accuracy
from slimc.compiler.options import CompileOptions, check_options
from slimc.compiler.outputs import describe
from slimc.compiler.reference import make_reference, shipped_part
from slimc.emit.file import data_path, write_model
from slimc.emit.model import emit
from slimc.errors import MismatchError, OptionError, OutputError
from slimc.evaluate.compare import Choices, compare_with, not_written
from slimc.evaluate.comparison import Comparison, mismatch
from slimc.evaluate.progress import Advance, Progress, Stopwatch, silent
from slimc.files.images import check_images, image_files
from slimc.files.metadata import Metadata, to_props
from slimc.files.output import check_output, replacing
from slimc.files.reference import Reference, reference_path, write_reference
from slimc.models.system import Network


@dataclass(frozen=True, eq=False)
class ExportReport:
    """What `export` did.

    Attributes:
        onnx: the model that was written, or the slim file.
        reference: the inputs and the PyTorch network's outputs, beside it; none beside a slim file.
        compiled: the network, without its weights.
        comparison: of all outputs, over all inputs, seeded and from the data folder; none where that was not wanted.
        agreement: how far what the model chooses agrees, where it chooses anything.
        replaced: files that were there before.
        worst_file: the image that the worst input is; none where that is a seeded one.
        milliseconds: where the time went, by stage: "load", "calibrate", "passes", "check_passes", "emit" and "verify", as
            far as there were such stages; and "total", which has what lies between them too.
        kept_float32: what half precision could not hold and why, by the name of the weight or product.
        warnings: what was not found out.
        accuracy: on the images of the data folder, where that has class folders or a labels.csv, and was compared on.
    """

    onnx: Path
    reference: Path | None
    compiled: Compiled
    comparison: Comparison | None
    milliseconds: Mapping[str, float]
    agreement: Choices | None = None
    replaced: tuple[Path, ...] = ()
    worst_file: Path | None = None
    kept_float32: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    accuracy: LabelledComparison | None = None

    @property
    def written(self) -> tuple[Path, ...]:
        """The files that were written: the model, its weights where they lie beside it, and the reference."""
        paths = (self.onnx, data_path(self.onnx), self.reference)
        return tuple(path for path in paths if path is not None and path.exists())


def export_network(
    network: Network,
    output: Path,
    options: CompileOptions,
    *,
    verify: bool = True,
    check_passes: bool = False,
    compiled: Compiled | None = None,
    watch: Stopwatch | None = None,
    progress: Progress = silent,
) -> ExportReport:
    """Compile `network` into the ONNX model `output` and its reference, or into the slim file `output`.

    Nothing is written unless everything succeeds.

    Args:
        network: what a checkpoint was loaded as.
        output: ends in .onnx, or in .safetensors for a slim file.
        options: how to compile.
        verify: compare with the PyTorch network before anything is written.
        check_passes: compare in float64 after every pass as well.
        compiled: the same, where it was compiled already. Without it, weights are released as they are written.
        watch: what has measured the stages before; none where there were none.
        progress: shows what is going on.

    Raises:
        UserError: bad options or an output that cannot be written.
        MismatchError: the ONNX model differs from the PyTorch network by more than the tolerance.
        MissingError: ONNX Runtime is not installed and verification was asked for.
    """
    watch = watch or Stopwatch(progress)
    check_export(network.path, output, options, verify=verify, check_passes=check_passes)
    files = _checked_images(options.data, progress)
    if output.suffix.lower() == SLIM_SUFFIX:
        return _export_slim(network, output, options, files, verify=verify, check=check_passes, watch=watch)
    if compiled is None:
        compiled = compile_network(network, options, check=check_passes, progress=progress)
        watch.add(compiled.milliseconds or {})
    network = compiled.network
    refer = partial(
        make_reference, network, options.variant, options.batch_size, options.tolerance, files, compiled.limits
    )
    targets = (output, data_path(output), reference_path(output))
    replaced = tuple(path for path in targets if path.exists())
    with replacing(*targets) as (onnx_temporary, _, reference_temporary):
        # Its inputs show how large values get. Where that does not matter, weights are released before it runs.
        reference = None if options.precision == "fp32" else _refer(refer, "running the PyTorch network", watch)
        with watch.stage("emit", f"writing {output.name}"):
            model = emit_onnx(compiled)
            compiled = compiled.without_weights()
            narrowed = narrow(model, options.precision, None if reference is None else reference.images)
            write_model(model, onnx_temporary)
            _refuse_link_to_parts(output, onnx_temporary)
            del model
            gc.collect()  # the graph's cycles
        reference = reference or _refer(refer, "comparing with the PyTorch network", watch)
        with watch.stage("verify", f"verifying {output.name}"):
            checked = _check(onnx_temporary, reference, options, output) if verify else (None, None, None)
            write_reference(reference_temporary, shipped_part(reference))
    comparison, agreement, accuracy = checked
    worst = None if comparison is None else reference.file_of(comparison.worst_input)
    kept, warnings, written = narrowed.kept, narrowed.warnings, reference_path(output)
    return ExportReport(
        output, written, compiled, comparison, watch.total(), agreement, replaced, worst, kept, warnings, accuracy
    )


def _export_slim(
    network: Network,
    output: Path,
    options: CompileOptions,
    files: list[Path],
    *,
    verify: bool,
    check: bool,
    watch: Stopwatch,
) -> ExportReport:
    replaced = (output,) if output.exists() else ()
    found = export_slim(network, output, options, files, verify=verify, check=check, watch=watch)
    return ExportReport(
        output, None, found.compiled, found.comparison, watch.total(), found.agreement, replaced, found.worst_file
    )


def _refuse_link_to_parts(output: Path, written: Path) -> None:
    """Refuse a link to a model of two files: whoever opens the link looks for the weights beside it, not beside the model.

    Raises:
        OutputError: `output` is a link, and the model `written` has external data.
    """
    if output.is_symlink() and data_path(written).exists():
        raise OutputError(f"{output}: is a link, and weights of over 2 GB need a second file; give {output.resolve()}")


def _checked_images(data: Path | None, progress: Progress) -> list[Path]:
    """The images in `data`, all of which can be read.

    Raises:
        OptionError: there are none, or some cannot be read, all of which are named.
    """
    if data is None:
        return []
    files = image_files(data)
    with progress(f"checking {len(files)} images") as advance:
        check_images(files, advance)
    return files


def _refer(refer: Callable[[Advance], Reference], text: str, watch: Stopwatch) -> Reference:
    """What the PyTorch network computes."""
    with watch.stage("verify", text) as advance:
        return refer(advance)


def _check(
    path: Path, reference: Reference, options: CompileOptions, output: Path
) -> tuple[Comparison, Choices | None, LabelledComparison | None]:
    """Compare the model at `path`, which is to become `output`: outputs, choices, and answers where images have labels."""
    comparison, agreement = verify_file(path, reference, options, output)
    accuracy = None if options.data is None else compare_accuracy(path, reference, options.data)
    return comparison, agreement, accuracy


def check_export(
    source: Path, output: Path, options: CompileOptions, *, verify: bool = True, check_passes: bool = False
) -> None:
    """Find out before any work whether `source` can be exported to `output`.

    Raises:
        OptionError: an option or the output's suffix cannot be used, or the output is the source.
        OutputError: the output cannot be written.
    """
    check_options(options)
    if output.exists() and source.exists() and output.samefile(source):
        raise OptionError(f"--output: {output} is the checkpoint itself; expected another file")
    check_output(output, (".onnx", SLIM_SUFFIX))
    if output.suffix.lower() == SLIM_SUFFIX:
        check_slim_options(output, options)
    if check_passes and options.variant != "slim":
        raise OptionError("--check-passes: no pass runs for --dense and --masked")
    if options.data is not None:
        capacity = options.adaptive is not None and options.adaptive.capacity
        if not verify and not capacity:
            raise OptionError("--data: its images are compared on, which --no-verify leaves out")
        image_files(options.data)


def emit_onnx(compiled: Compiled) -> oir.Model:
    """The compiled model as ONNX in float32, with its metadata."""
    options = compiled.options
    model = emit(
        compiled.model,
        options.effective_target,
        batch_size=options.batch_size,
        opset=options.opset,
        conditional=compiled.adaptive is not None and compiled.adaptive.conditional,
    )
    metadata = _metadata(compiled)
    model.metadata_props.update(to_props(metadata))
    model.producer_version = metadata.version
    return model


def _metadata(compiled: Compiled) -> Metadata:
    network, options = compiled.network, compiled.options
    details = dict(network.details)
    if compiled.adaptive is not None:
        details["adaptive"] = compiled.adaptive.name
    if options.effective_target.tuned and options.variant == "slim":
        details["tuned"] = options.effective_target.tuned
    if compiled.limits is not None:
        details["limits"] = compiled.limits.to_json()
    return Metadata(
        source_sha256=network.sha256,
        system=network.system.name,
        variant=options.variant,
        target=options.target.name,
        settings=network.settings,
        details=details,
        dense=compiled.dense,
        slim=compiled.slim,
        preprocessing=network.preprocessing,
        structure=compiled.structure,
        outputs=describe(network.masked, options.batch_size),
    )


def verify_file(
    path: Path, reference: Reference, options: CompileOptions, output: Path
) -> tuple[Comparison, Choices | None]:
    """Compare the ONNX model at `path`, which is to become `output`, with `reference` in ONNX Runtime.

    What the model stores in half precision is rounded to that. Tells also how far what it chooses agrees, where it selects
    patches or decides what runs.

    Raises:
        MismatchError: they differ by more than the tolerance.
    """
    opener = partial(ort.load, rounded=options.precision != "fp32")
    with not_written(output):
        found, agreement = compare_with(
            path, reference, options.tolerance, open_model=opener, precision=options.precision, source=str(output)
        )
    if not found.passed:
        worst = reference.file_of(found.worst_input) or f"input {found.worst_input}"
        raise MismatchError(
            f"{output}: not written: the ONNX model differs from the PyTorch network by {mismatch(found)} on {worst}, more "
            f"than {found.tolerance:.0e}"
        )
    return found, agreement
