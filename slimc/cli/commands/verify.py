"""``slimc verify``: do models and engines compute what the PyTorch network does?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimc.cli import options as opt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slimc.cli.console import Output
    from slimc.compiler.verify import Verdict
    from slimc.evaluate.comparison import Comparison

SUMMARY = "Compare models and engines with the PyTorch network."
HELP = """Compare models (.onnx) and engines (.engine) with the PyTorch network, by the reference that export wrote.

The last line is PASSED or FAILED; the exit status is 1 where an artefact fails. Needs neither torch nor timm unless
--against is a checkpoint."""
EXAMPLE = "Example: slimc verify small.onnx small.engine --against small.reference.npz"


@opt.expand
def command(
    artefacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Models and engines.")],
    given: opt.Given,
    printing: opt.Printing,
    against: Annotated[
        Path | None,
        typer.Option(metavar="CKPT|ONNX|NPZ", help="Default: the .reference.npz beside each artefact."),
    ] = None,
    data: opt.Data = None,
    backend: Annotated[str, typer.Option(help=opt.BACKEND_HELP)] = "auto",
    threads: opt.Threads = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Share of an output's spread. Default: by precision, 1e-4 fp32, 1e-2 fp16, 8e-2 bf16."),
    ] = None,
) -> None:
    """Verify every artefact."""
    import slimc
    from slimc.cli.results import verify_json

    out = printing.output()
    verdicts = [
        slimc.verify(
            path,
            against=against,
            data=data,
            backend=backend,
            threads=threads,
            tolerance=tolerance,
            ema=given.ema,
            progress=out.progress,
            **given.options,
        )
        for path in artefacts
    ]
    passed = all(verdict.passed for verdict in verdicts)
    out.result(
        "verify", verify_json(verdicts, against, data), inputs={**_read(artefacts, against), **opt.inputs(*given.files)}
    )
    _print_report(out, verdicts)
    out.print("PASSED" if passed else "FAILED")
    if not passed:
        raise typer.Exit(1)


def _read(artefacts: list[Path], against: Path | None) -> dict[Path, None]:
    """The files that were read: artefacts, and what they were compared with."""
    from slimc.files.reference import reference_path

    return opt.inputs(*artefacts, *([reference_path(path) for path in artefacts] if against is None else [against]))


def _agreement_rows(verdicts: list[Verdict]) -> list[tuple[str, list[str]]]:
    """How far kept patches or decisions agree, where any artefact makes some."""
    from slimc.evaluate.gate_decisions import Exactness
    from slimc.evaluate.kept_patches import Agreement

    found = [v.agreement if isinstance(v.agreement, Agreement) else None for v in verdicts]
    decided = [v.agreement if isinstance(v.agreement, Exactness) else None for v in verdicts]
    if any(decided):
        return [
            ("exact images", [f"{e.exact} of {e.images}" if e else "-" for e in decided]),
            ("equal decisions", [f"{e.agreement:.3%}" if e else "-" for e in decided]),
            (
                "worst on the others",
                [
                    f"{e.worst_other_over_spread:.2e}" if e and e.worst_other_over_spread is not None else "-"
                    for e in decided
                ],
            ),
        ]
    if not any(found):
        return []
    return [
        ("kept patches, by stage", [" ".join(f"{share:.1%}" for share in a.stages) if a else "-" for a in found]),
        ("inputs with equal sets", [f"{a.equal} of {a.inputs}" if a else "-" for a in found]),
    ]


def _only_logits(found: Sequence[Comparison | None]) -> bool:
    return all(c is None or [each.output for each in c.outputs] == ["logits"] for c in found)


def _max_label(found: Sequence[Comparison | None]) -> str:
    return "max of the logits' spread" if _only_logits(found) else "max of its spread"


def _shape_rows(found: Sequence[Comparison | None]) -> list[tuple[str, list[str]]]:
    """What was compared: logits, or which outputs, of which the one that is the furthest off is told about."""
    if _only_logits(found):
        return [("inputs x classes", [f"{c.inputs} x {c.classes}" if c else "-" for c in found])]
    return [
        ("inputs", [str(c.inputs) if c else "-" for c in found]),
        ("outputs", [", ".join(each.output for each in c.outputs) if c else "-" for c in found]),
        ("worst output", [c.worst.output if c else "-" for c in found]),
    ]


def _decision_rows(found: Sequence[Comparison | None]) -> list[tuple[str, list[str]]]:
    """How far logits decide alike, where there are any."""
    logits = [None if c is None else c.logits for c in found]
    if not any(logits) and not _only_logits(found):
        return []
    return [
        ("top-1 agreement", [f"{c.top1_agreement:.1%}" if c else "-" for c in logits]),
        ("top-5 agreement", [f"{c.top5_agreement:.1%}" if c else "-" for c in logits]),
        ("smallest margin", [f"{c.margin:.3e}" if c else "-" for c in logits]),
    ]


def _worst(verdict: Verdict) -> str:
    if verdict.worst_file is not None:
        return verdict.worst_file.name
    return "-" if verdict.comparison is None else str(verdict.comparison.worst_input)


def _print_report(out: Output, verdicts: list[Verdict]) -> None:
    """One column an artefact."""
    found = [verdict.comparison for verdict in verdicts]
    rows: list[tuple[str, list[str]]] = [
        ("back end", [verdict.backend for verdict in verdicts]),
        ("precision", [verdict.artefact.precision for verdict in verdicts]),
        *_shape_rows(found),
        ("max abs", [f"{c.max_abs:.3e}" if c else "-" for c in found]),
        ("mean abs", [f"{c.mean_abs:.3e}" if c else "-" for c in found]),
        ("99th percentile", [f"{c.p99_abs:.3e}" if c else "-" for c in found]),
        (_max_label(found), [f"{c.max_rel:.3e}" if c else "-" for c in found]),
        ("tolerance", [f"{c.tolerance:.0e}" if c else "-" for c in found]),
        ("cosine, smallest", [f"{c.cosine:.9f}" if c else "-" for c in found]),
        *_decision_rows(found),
        ("worst input", [_worst(verdict) for verdict in verdicts]),
        *_agreement_rows(verdicts),
        ("verdict", ["passed" if verdict.passed else "failed" for verdict in verdicts]),
    ]
    out.table("", ("", *(v.artefact.path.name for v in verdicts)), [(name, *cells) for name, cells in rows])
    for verdict in verdicts:
        if verdict.failure:
            out.print(f"{verdict.artefact.path}: {verdict.failure}")
