"""Reports as the plain values of ``--json``: docs/reference/json.md says what every key means, and in which unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from slimc.cli.demo import DemoResult
    from slimc.cli.doctor import Finding
    from slimc.compiler.compile import Compiled
    from slimc.compiler.engine import EngineReport
    from slimc.compiler.export import ExportReport
    from slimc.compiler.verify import Verdict
    from slimc.evaluate.accuracy import AccuracyReport
    from slimc.evaluate.compare import Choices
    from slimc.evaluate.comparison import Comparison
    from slimc.evaluate.difference import Difference
    from slimc.evaluate.latency import Measurement, Realised
    from slimc.files.structure import Structure
    from slimc.targets.count import Counts
    from slimc.targets.tuning import Tuning


def counts_json(dense: Counts, slim: Counts) -> dict[str, Any]:
    """Parameters and MACs of two networks."""
    return {
        "params": {"dense": dense.params, "slim": slim.params},
        "macs": {"dense": dense.macs, "slim": slim.macs},
    }


def compiled_json(compiled: Compiled) -> dict[str, Any]:
    """What was compiled, and how."""
    from slimc.compiler.outputs import describe
    from slimc.files.metadata import preprocessing_json

    network, options = compiled.network, compiled.options
    return {
        "system": network.system.name,
        "variant": options.variant,
        "target": options.target.name,
        "precision": options.precision,
        "batch_size": options.batch_size,
        "output_tensors": [asdict(output) for output in describe(network.masked, options.batch_size)],
        "settings": dict(network.settings),
        "details": dict(network.details),
        "tuned": options.effective_target.tuned or None,
        "adaptive": None if compiled.adaptive is None else compiled.adaptive.name,
        "limits": None if compiled.limits is None else compiled.limits.to_json(),
        "preprocessing": preprocessing_json(network.preprocessing, network.masked.image),
        "warnings": list(network.warnings),
        **counts_json(compiled.dense, compiled.slim),
    }


def structure_json(structure: Structure) -> dict[str, Any]:
    """Layer by layer what is left."""
    values = asdict(structure)
    for layer in values["layers"]:
        layer["groups"] = [{"heads": heads, "width": width} for heads, width in layer["groups"]]
    return values


def comparison_json(found: Comparison | None, agreement: Choices | None = None) -> dict[str, Any] | None:
    """A comparison of outputs, with how far choices agree; none where nothing was compared.

    Its own figures are those of the output that is the furthest off, and of the logits where they are about decisions.
    """
    if found is None:
        return None
    worst, logits = difference_json(found.worst), found.logits
    del worst["shape"]
    decisions = {
        "classes": "classes",
        "top1_agreement": "top1_agreement",
        "top5_agreement": "top5_agreement",
        "margin": "margin",
        "clear_inputs": "clear",
        "clear_top1_agreement": "clear_agreement",
    }
    return {
        **worst,
        "max_rel": worst["max_abs_over_spread"],  # the name that scripts know from before it had a better one
        **{said: None if logits is None else getattr(logits, name) for said, name in decisions.items()},
        "outputs": [difference_json(each) for each in found.outputs],
        "choices": None if agreement is None else {"kind": agreement.key, **asdict(agreement)},
    }


def difference_json(found: Difference) -> dict[str, Any]:
    """One output against what was expected."""
    from slimc.evaluate.difference import figures

    values = figures(found)
    values["max_abs_over_spread"] = values.pop("max_rel")
    return values


def names(paths: Sequence[Path]) -> list[str]:
    """Paths as text."""
    return [str(path) for path in paths]


def export_json(report: ExportReport) -> dict[str, Any]:
    """``slimc export``."""
    compiled = report.compiled
    values = compiled_json(compiled)
    values["warnings"] += report.warnings
    return {
        **values,
        "data": None if compiled.options.data is None else str(compiled.options.data),
        "onnx": str(report.onnx),
        "reference": None if report.reference is None else str(report.reference),
        "replaced": names(report.replaced),
        "verify": comparison_json(report.comparison, report.agreement),
        "worst_file": None if report.worst_file is None else str(report.worst_file),
        "accuracy": None
        if report.accuracy is None
        else {
            "images": report.accuracy.model.images,
            "pytorch": report.accuracy.pytorch.summary(),
            "onnx": report.accuracy.model.summary(),
        },
        "kept_float32": dict(report.kept_float32),
        "passes": None if compiled.pass_errors is None else dict(compiled.pass_errors),
        "ms": dict(report.milliseconds),
    }


def verify_json(verdicts: Sequence[Verdict], against: Path | None, data: Path | None) -> dict[str, Any]:
    """``slimc verify``."""
    from slimc.files.reference import reference_path

    artefacts = [
        {
            "path": str(verdict.artefact.path),
            "precision": verdict.artefact.precision,
            "variant": verdict.artefact.variant,
            "backend": verdict.backend,
            "against": str(reference_path(verdict.artefact.path) if against is None else against),
            "passed": verdict.passed,
            "failure": verdict.failure or None,
            "comparison": comparison_json(verdict.comparison, verdict.agreement),
            "worst_file": None if verdict.worst_file is None else str(verdict.worst_file),
        }
        for verdict in verdicts
    ]
    passed = all(verdict.passed for verdict in verdicts)
    return {"artefacts": artefacts, "data": None if data is None else str(data), "passed": passed}


def engine_json(report: EngineReport) -> dict[str, Any]:
    """``slimc build-engine``."""
    from slimc.backends.engine_file import facts_path

    facts = asdict(report.facts)
    facts.pop("slimc")  # stands in the header
    images, logits = facts.pop("inputs"), facts.pop("outputs")  # there "inputs" and "outputs" are files
    facts["library_version"] = facts.pop("version")
    facts["onnx_sha256"] = facts.pop("source_sha256")
    return {
        "engine": str(report.engine),
        "description": str(facts_path(report.engine)),
        "reference": None if report.reference is None else str(report.reference),
        "exported_for": report.exported_for,
        **facts,
        "input_tensors": images,
        "output_tensors": logits,
        "kernels": len(report.facts.kernels),
        "replaced": names(report.replaced),
        "verify": comparison_json(report.comparison),
        "verify_graph": comparison_json(report.graph_comparison, report.agreement),
        "unchecked": report.unchecked or None,
        "warnings": list(report.warnings),
    }


def bench_json(
    measurements: Sequence[Measurement], shares: Sequence[Realised], warnings: Sequence[str], replaced: Sequence[Path]
) -> dict[str, Any]:
    """``slimc bench``."""
    realised = [
        {
            "family": share.family,
            "speedup": share.speedup.median,
            "speedup_p10": share.speedup.low,
            "speedup_p90": share.speedup.high,
            "macs_ratio": share.macs_ratio,
            "realised_share": share.share,
        }
        for share in shares
    ]
    networks = [measurement.summary(measurements[0]) for measurement in measurements]
    return {"networks": networks, "realised": realised, "warnings": list(warnings), "replaced": names(replaced)}


def eval_json(report: AccuracyReport, data: Path, data_train: Path | None = None) -> dict[str, Any]:
    """``slimc eval``."""
    from slimc.files.metadata import preprocessing_json

    networks = [
        {
            "name": network.subject.name,
            "backend": network.subject.session.backend,
            "variant": network.subject.variant or None,
            "precision": network.subject.precision or None,
            "target": network.subject.target or None,
            "threads": network.subject.threads,
            "batch_size": network.subject.batch_size,
            **network.scores.summary(),
            "images_per_second": network.images_per_second,
            "preprocessing": preprocessing_json(network.preprocessing, network.image),
        }
        for network in report.networks
    ]
    called = [network["name"] for network in networks]
    changes = [
        {
            "first": called[change.first],
            "second": called[change.second],
            "changed": len(change.images),
            "gained": change.gained,
            "lost": change.lost,
            "images": [
                {
                    "file": str(report.data.files[row]),
                    "label": report.data.classes[report.data.labels[row]],
                    "first": report.data.classes[report.networks[change.first].scores.answers[row]],
                    "second": report.data.classes[report.networks[change.second].scores.answers[row]],
                }
                for row in change.images
            ],
        }
        for change in report.changes
    ]
    return {
        "data": str(data),
        "images": len(report.data),
        "classes": len(report.data.classes),
        "knn": None
        if report.neighbours is None
        else {
            "k": report.neighbours.k,
            "temperature": report.neighbours.temperature,
            "data_train": str(data_train),
            "images": len(report.neighbours.train),
            "features": list(report.neighbours.features),
        },
        "networks": networks,
        "changes": changes,
        "reading_seconds": report.reading_seconds,
        "warnings": list(report.warnings),
    }


def tune_json(tuning: Tuning, output: Path, warnings: Sequence[str], replaced: Sequence[Path]) -> dict[str, Any]:
    """``slimc tune``."""
    values = asdict(tuning)
    values["fit_error"] = values.pop("error")
    return {"tuning": str(output), **values, "warnings": list(warnings), "replaced": names(replaced)}


def doctor_json(findings: Sequence[Finding], able: Mapping[str, bool]) -> dict[str, Any]:
    """``slimc doctor``."""
    found = [{**asdict(finding), "install": finding.install or None, "works": finding.works} for finding in findings]
    return {"findings": found, "able": dict(able)}


def demo_json(result: DemoResult, replaced: Sequence[Path]) -> dict[str, Any]:
    """``slimc demo``."""
    counts = {name: report.compiled.slim for name, report in result.reports.items()}
    return {
        "digits": result.digits,
        "correct": dict(result.correct),
        "masked_slim_agreement": result.agreement,
        "params": {name: count.params for name, count in counts.items()},
        "macs": {name: count.macs for name, count in counts.items()},
        "latency_ms": {name: seconds * 1e3 for name, seconds in result.latency.items()},
        "verify": {name: comparison_json(report.comparison) for name, report in result.reports.items()},
        "replaced": names(replaced),
    }
