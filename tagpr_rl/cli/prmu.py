"""`launch.py prmu`: what a trained PRMU is worth. The work is in stages/prmu_eval.py; this is its command line."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tagpr_rl.report.cards.prmu_page import prmu_summary
from tagpr_rl.run.layout import RunDir
from tagpr_rl.run.state import read_resolved
from tagpr_rl.types import TagprError


def add_commands(commands: Any) -> None:
    """Add `prmu eval RUN` to the top parser's commands."""
    prmu = commands.add_parser("prmu", help="measure a trained reward model")
    what = prmu.add_subparsers(dest="prmu_command", required=True)
    evaluate = what.add_parser("eval", help="accuracy, controls, calibration, best-of-N, probes, on held-out users")
    evaluate.add_argument("target", metavar="RUN", type=Path, help="a run's folder")
    evaluate.add_argument("--stage", help="a prmu stage; default: the recipe's first")
    evaluate.add_argument("--questions", type=int, default=400, help="about this many held-out questions (400)")
    evaluate.add_argument("--samples", type=int, default=8, help="responses to each question; a power of 2 (8)")


def run_command(arguments: argparse.Namespace, console: Console) -> int:
    """`prmu eval`: measure, print the main figures and the files' paths. TagprError for a folder that is no run."""
    run = RunDir(arguments.target)
    if not run.resolved.is_file():
        raise TagprError(f"{arguments.target} is no run's folder (it has no {run.resolved.name})")
    if arguments.questions < 2:
        raise TagprError(f"--questions {arguments.questions}: use 2 or more")
    module = importlib.import_module("tagpr_rl.studies.prmu_eval")
    path: Path = module.prmu_eval(
        read_resolved(run), run, arguments.stage, questions=arguments.questions, samples=arguments.samples,
        console=console,
    )  # fmt: skip
    facts = json.loads(path.read_text(encoding="utf-8"))
    console.print(table(facts))
    for file in (path, path.with_suffix(".html")):
        console.print(str(file), soft_wrap=True, highlight=False, markup=False)
    return 0


def table(facts: dict[str, Any]) -> Table:
    """The main figures."""
    shown = Table(title=f"{facts['run']}, stage {facts['stage']} (user: {facts['user']})", show_header=False)
    for label, text in prmu_summary(facts):
        shown.add_row(label, text.replace("[", r"\["))
    return shown
