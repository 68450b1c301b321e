"""``slimc doctor``: what this machine can do, and what to install for the rest."""

from __future__ import annotations

from slimc.cli import options as opt

SUMMARY = "Tell what this machine can do, and what to install."
HELP = """Tell what this machine can compile, build, run and time, and the command that installs what is missing."""
EXAMPLE = "Example: slimc doctor --json"


@opt.expand
def command(printing: opt.Printing) -> None:
    """Examine this machine."""
    from slimc.cli.doctor import abilities, examine
    from slimc.cli.results import doctor_json

    out = printing.output()
    with out.progress("looking around"):
        findings = examine()
    able = abilities(findings)
    out.result("doctor", doctor_json(findings, able))
    out.table(
        "",
        ("", "found", "for", "to install"),
        [(f.name, f.found, f.purpose, f.install) for f in findings],
        figures=False,
    )
    for ability, works in able.items():
        out.print(f"{ability.replace('_', ' ')}: {'yes' if works else 'no'}")
