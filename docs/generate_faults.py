"""The page of faults, from the outcomes that tests/faults wrote."""

from __future__ import annotations

import json
from pathlib import Path

from generate_cli import NOTE, cell

OUTCOMES = Path(__file__).resolve().parents[1] / "tests" / "faults" / "outcomes.json"


def faults_page() -> str:
    """What a run does about each fault, and the seconds until it has done it."""
    lines = [
        "# Faults",
        NOTE,
        "What was taken away from a small run on two CPU cores, what the run did about it, and the seconds until that",
        "was done. `make test-faults` does all of it again (about an hour; some faults need root, `iproute2` or",
        "`faketime`) and writes the figures. After every fault no process of the run is left, and `tagpr resume` loses",
        "no step.",
        "How to go on: [Stop, resume, export](resume.md).",
        "",
    ]
    for where, rows in json.loads(OUTCOMES.read_text(encoding="utf-8")).items():
        lines += [f"## {where}", "", "| fault | what happens | seconds |", "|---|---|---:|"]
        lines += [f"| {fault} | {cell(row['outcome'])} | {row['seconds']:.0f} |" for fault, row in rows.items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
