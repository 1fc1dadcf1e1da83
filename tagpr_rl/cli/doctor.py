"""`tagpr doctor`: whether this machine is fit for runs, whatever their recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tagpr_rl.backend.session.check import MISTAKE, OK, WARNING
from tagpr_rl.backend.session.leftovers import clean
from tagpr_rl.backend.session.machine import machine_checks, temporary_folders
from tagpr_rl.cli.arguments import say


def command(
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="Where runs will be written.")] = Path("."),
    cleans: Annotated[bool, typer.Option("--clean", help="First end and delete what dead runs left here.")] = False,
) -> None:
    """Check this machine: package versions, verl's plugin, shared memory, ports, temporary files, memory, disk, what
    earlier runs left behind, and variables of the shell that would win over a recipe.

    Exits with 2 if there is a mistake: a run would fail. With a warning it may work all the same. `tagpr plan` checks
    a recipe.

    Example: tagpr doctor --folder /scratch/runs
    """
    if cleans:
        for line in clean(temporary_folders(os.environ)):
            say(line)
    rows = sorted(machine_checks(folder, os.environ), key=lambda row: (MISTAKE, WARNING, OK).index(row.state))
    table = Table("", "what", "seen", "remedy", title="This machine")
    colours = {MISTAKE: "bold red", WARNING: "yellow", OK: "green"}
    for row in rows:
        state = f"[{colours[row.state]}]{row.state}[/]"
        table.add_row(state, row.name, escape(row.seen), escape(row.remedy))
    console = Console()
    console.print(table)
    counts = {state: sum(row.state == state for row in rows) for state in (MISTAKE, WARNING)}
    console.print(f"{counts[MISTAKE]} mistakes, {counts[WARNING]} warnings", highlight=False)
    if counts[MISTAKE]:
        raise typer.Exit(2)
