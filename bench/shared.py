"""What several benchmarks share: their command lines, runs of derived recipes, and how they report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from tagpr_rl.config import Recipe
from tagpr_rl.files import write_json
from tagpr_rl.run.layout import RunDir
from tagpr_rl.types import TagprError


def seeds(text: str) -> tuple[int, ...]:
    """`1,2,3` of a command line; a seed that stands twice is refused."""
    numbers = tuple(int(part) for part in text.split(","))
    if len(set(numbers)) != len(numbers):
        raise argparse.ArgumentTypeError(f"a seed stands twice in {text!r}")
    return numbers


def recipe_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """The options of a benchmark that trains on a world of its own: folder, world, overrides of the recipe."""
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--world-seed", type=int, default=41)
    parser.add_argument("--held-out-users", type=int, default=250)
    parser.add_argument("overrides", nargs="*", metavar="key=value")


def run_all(recipes: Mapping[int, Recipe], console: Console, title: str, until: str | None = None) -> dict[str, Any]:
    """Run each recipe (by seed) or let it go on; the environment that they ran in."""
    from tagpr_rl.stages.pipeline import describe_environment, run_pipeline  # after the cheap checks

    for seed, recipe in recipes.items():
        console.rule(f"{title} {seed}")
        run_pipeline(recipe, RunDir(recipe.out / recipe.name), until=until, console=console)
    return describe_environment()


def finish(path: Path, facts: Mapping[str, Any], console: Console) -> None:
    """Write the figures as JSON and print where."""
    write_json(path, facts)
    console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def exit_with(main: Callable[[], None]) -> None:
    """Run `main`; a mistake of the user is one line and exit code 2."""
    try:
        main()
    except TagprError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def leave_path() -> None:
    """Take this folder off sys.path: Ray's workers take the path over, and verl looks for a package `trl`, which
    trl.py beside this file is not."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
