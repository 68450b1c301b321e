"""A network becomes a slim file (`slimc.files.slim`), read back and compared before it takes its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slimc.compiler.adaptive import Adaptive, limited
from slimc.compiler.compile import Compiled, compile_network, make_slim
from slimc.compiler.limits import Limits, graph_decisions
from slimc.compiler.options import CompileOptions
from slimc.compiler.outputs import with_outputs
from slimc.compiler.pipeline import check_passes, lasting_passes
from slimc.compiler.reference import SEED, Found, Runner, make_reference
from slimc.errors import MismatchError, OptionError
from slimc.evaluate.compare import DOUBT, Choices, not_written
from slimc.evaluate.comparison import Comparison, compare_outputs, mismatch
from slimc.evaluate.gate_decisions import Exactness
from slimc.evaluate.kept_patches import agree, equal_sets
from slimc.evaluate.progress import Stopwatch
from slimc.files.images import seeded_images
from slimc.files.output import replacing
from slimc.files.reference import Reference
from slimc.ir import BoolArray
from slimc.ir.gate_usage import join
from slimc.models import slim_file
from slimc.models.system import Network

SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class SlimExport:
    """What writing a slim file yields: the network that was compiled, and how far what was written agrees with it.

    Without a `comparison` nothing was compared. `worst_file` is the image that the worst input is, if it is one.
    """

    compiled: Compiled
    comparison: Comparison | None = None
    agreement: Choices | None = None
    worst_file: Path | None = None


def check_slim_options(output: Path, options: CompileOptions) -> None:
    """Refuse what says how a network is to be computed: a slim file is for any way.

    Raises:
        OptionError: such a thing was said.
    """
    said = {
        f"--{options.variant}": options.variant != "slim",
        "--target": options.target.name != "generic",
        "--batch-size": options.batch_size != 1,
        "--opset": options.opset is not None,
        "--precision": options.precision != "fp32",
        "--adaptive": options.adaptive is not None and (options.adaptive.conditional or not options.adaptive.capacity),
    }
    for option, given in said.items():
        if given:
            raise OptionError(f"{option}: {output} is a slim file, for any; say it when a model is made of that")


def export_slim(
    network: Network,
    output: Path,
    options: CompileOptions,
    files: list[Path],
    *,
    verify: bool = True,
    check: bool = False,
    watch: Stopwatch,
) -> SlimExport:
    """Write `network`, as slim as it is for all targets, batch sizes and outputs, to `output`.

    Args:
        network: what a checkpoint was loaded as.
        output: ends in .safetensors.
        options: how to compile, as far as they go with a file for any target.
        files: images to compare on besides seeded inputs.
        verify: compare what was written with the PyTorch network before it takes its place.
        check: compare in float64 after every pass as well.
        watch: measures the stages, and shows them.

    Raises:
        UserError: bad options, or an output that cannot be written.
        MismatchError: what was written computes something else than the PyTorch network.
    """
    network = with_outputs(network, options.outputs)
    slim = make_slim(network, options, watch)
    limits = None if slim.limits is None else Limits.from_json(slim.limits)
    compiled = _compiled(network, slim, options, watch)
    if check:
        with watch.stage("check_passes", "checking every pass in float64"):
            compiled = replace(compiled, pass_errors=_pass_errors(network, limits))
    with replacing(output) as (temporary,):
        with watch.stage("emit", f"writing {output.name}"):
            slim_file.save(slim, temporary)
        if not verify:
            return SlimExport(compiled)
        with watch.stage("verify", f"verifying {output.name}") as advance, not_written(output):
            read = slim_file.read_back(slim, temporary)
            expected = make_reference(network, "masked", 1, options.tolerance, files, limits, advance)
            found = Runner(read, "masked").all(expected.images, advance)
            comparison, agreement = _compare(read, found, expected, options.tolerance)
    return SlimExport(compiled, comparison, agreement, expected.file_of(comparison.worst_input))


def _compiled(network: Network, slim: Network, options: CompileOptions, watch: Stopwatch) -> Compiled:
    """What reports tell of `network`, of which `slim` was made: counts and structure for no target in particular."""
    compiled = compile_network(slim, replace(options, outputs=None, adaptive=None, data=None))
    watch.add(compiled.milliseconds or {})
    adaptive = None if slim.limits is None else Adaptive(capacity=True)
    return replace(compiled.without_weights(), network=network, options=options, adaptive=adaptive)


def _pass_errors(network: Network, limits: Limits | None) -> Mapping[str, float]:
    model = network.masked if limits is None or network.limits is not None else limited(network.masked, limits)
    images = seeded_images(1, model.image, SEED, model.embedding.channels)
    return check_passes(model, lasting_passes(), images)


def _compare(slim: Network, found: Found, expected: Reference, tolerance: float) -> tuple[Comparison, Choices | None]:
    """Compare what the network of a slim file makes of the reference's inputs, and chooses on the way.

    An input on which it chooses otherwise counts unless that choice was in doubt.

    Raises:
        MismatchError: the outputs differ by more than the tolerance.
    """
    judged, agreement = _judged(slim, found, expected)
    if not judged.any():
        raise MismatchError(f"nothing was compared: choices are in doubt on all of {len(judged)} inputs")
    actual = {name: values[judged] for name, values in found.outputs.items()}
    wanted = {name: values[judged] for name, values in expected.outputs.items()}
    comparison = compare_outputs(actual, wanted, tolerance).numbered(np.flatnonzero(judged))
    if not comparison.passed:
        worst = expected.file_of(comparison.worst_input) or f"input {comparison.worst_input}"
        raise MismatchError(
            f"what was written differs from the PyTorch network by {mismatch(comparison)} on {worst}, more than "
            f"{tolerance:.0e}"
        )
    return comparison, agreement


def _judged(slim: Network, found: Found, expected: Reference) -> tuple[BoolArray, Choices | None]:
    """The inputs [n] on which outputs have to agree, and how far choices do."""
    if expected.kept:
        stages = zip(*(trace.kept for trace in found.traces), strict=True)
        kept = tuple(np.concatenate([part.numpy() for part in stage]) for stage in stages)
        sure = np.asarray(expected.facts["margins"]) >= DOUBT["fp32"]
        return equal_sets(kept, expected.kept) | sure, agree(kept, expected.kept)
    used = [trace.usage for trace in found.traces if trace.usage is not None]
    if not used:
        return np.ones(len(expected.images), bool), None
    usage, exact = join(used), np.asarray(expected.facts["exact"], bool)
    decided = graph_decisions(usage, slim.masked, None)
    names = [name for name in expected.decisions if name.endswith(".decided")]
    equal = [decided[name] == expected.decisions[name] for name in names]
    same = np.all([each.all(1) for each in equal], axis=0) if equal else np.ones(len(exact), bool)
    share = float(np.mean(np.concatenate([each[exact].ravel() for each in equal]))) if equal and exact.any() else 1.0
    count = (len(exact), int(exact.sum()), int((exact & same).sum()))
    return exact & (same | (usage.margin >= DOUBT["fp32"])), Exactness(*count, share, _worst(found, expected, ~exact))


def _worst(found: Found, expected: Reference, beyond: BoolArray) -> float | None:
    """The largest difference on the inputs `beyond` the limits, as a share of a spread; none where there are none."""
    if not beyond.any():
        return None
    shares = [
        float(np.abs(found.outputs[name][beyond] - values[beyond]).max() / max(float(values.std()), 1e-30))
        for name, values in expected.outputs.items()
    ]
    return max(shares)
