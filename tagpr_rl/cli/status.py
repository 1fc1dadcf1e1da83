"""`tagpr status`: what is done and what is left."""

from __future__ import annotations

from rich.console import Console

from tagpr_rl.cli.arguments import Overrides, RunName
from tagpr_rl.plan.show import print_status
from tagpr_rl.run.open import open_run


def command(run: RunName, overrides: Overrides = None) -> None:
    """Print the state of every stage of RUN.

    Example: tagpr status runs/demo
    """
    recipe, folder = open_run(run, overrides or (), started=False)
    print_status(recipe, folder, Console())
