"""`launch.py faithful`: alter a thought or a profile, and let the model answer again (stages/faithful.py)."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tagpr_rl.run.layout import RunDir
from tagpr_rl.run.state import read_resolved
from tagpr_rl.types import TagprError


def add_commands(commands: Any) -> None:
    """Add `faithful RUN` to the top parser's commands."""
    command = commands.add_parser("faithful", help="does the answer change when its thought or profile is altered?")
    command.add_argument("target", metavar="RUN", type=Path, help="a run's folder")
    command.add_argument("--stage", help="an sft or grpo stage that reasons; default: the last finished one")
    command.add_argument("--questions", type=int, default=200, metavar="N", help="held-out questions (default 200)")


def run_command(arguments: argparse.Namespace, console: Console) -> int:
    """Measure, print the table and the file's path. TagprError for a folder that is no run."""
    run = RunDir(arguments.target)
    if not run.resolved.is_file():
        raise TagprError(f"{arguments.target} is no run's folder (it has no {run.resolved.name})")
    if arguments.questions < 2:
        raise TagprError(f"--questions {arguments.questions}: use 2 or more")
    module = importlib.import_module("tagpr_rl.studies.faithful")
    recipe = read_resolved(run)
    path: Path = module.faithful(recipe, run, arguments.stage, questions=arguments.questions, console=console)
    console.print(table(json.loads(path.read_text(encoding="utf-8"))))
    console.print(str(path), soft_wrap=True, highlight=False, markup=False)
    return 0


def table(facts: Mapping[str, Any]) -> Table:
    """One row per alteration, then one per tag whose step was dropped."""
    own = facts["own_score"]
    shown = Table(
        title=f"{facts['run']}, stage {facts['stage']}: {facts['well_formed']} of {facts['questions']} questions "
        f"answered in form, own score {own[0]:.3f}",
        caption="mean over tasks \\[95 % interval over users]",
    )
    for heading in ("altered", "questions", "answer changed", "score", "change of the score"):
        shown.add_column(heading, justify="left" if heading == "altered" else "right")
    rows = {**facts["alterations"], **{f"  drop_step: {tag}": row for tag, row in facts["tags"].items()}}
    for name, row in rows.items():
        changed, score, change = (row[key] for key in ("changed", "score", "score_change"))
        shown.add_row(
            name,
            str(row["n"]),
            f"{changed[0]:.1%} \\[{changed[1]:.1%}, {changed[2]:.1%}]",
            f"{score[0]:.3f}",
            f"{change[0]:+.3f} \\[{change[1]:+.3f}, {change[2]:+.3f}]",
        )
    return shown


COMMANDS = {"faithful": run_command}
