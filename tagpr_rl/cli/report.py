"""`tagpr report`: a run's report, written again."""

from __future__ import annotations

import json

from rich.console import Console

from tagpr_rl.cli.arguments import Overrides, RunName, say
from tagpr_rl.report import build_report, summary_table
from tagpr_rl.run.open import open_run


def command(run: RunName, overrides: Overrides = None) -> None:
    """Write report.html and report.json of RUN again from what is on disk, and print the results.

    Works for unfinished runs too; the report says what is missing.

    Example: tagpr report runs/demo
    """
    recipe, folder = open_run(run, overrides or ())
    page = build_report(folder, recipe)
    Console().print(summary_table(json.loads(folder.report_json.read_text(encoding="utf-8"))))
    say(page)
