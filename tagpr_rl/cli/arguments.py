"""What the commands' signatures share: the forms of RECIPE, RUN and key=value, and what a command prints."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from tagpr_rl.cli.terminal import visible
from tagpr_rl.files import target_mistake, user_path
from tagpr_rl.types import TagprError, did_you_mean


def _recipe_names() -> list[str]:
    """For shell completion: the shipped recipes."""
    from tagpr_rl.run.open import shipped_recipes

    return [name for name in shipped_recipes() if not name.startswith("sweeps/")]


def _run_folders() -> list[str]:
    """For shell completion: folders that hold a run below runs/."""
    return [path.parent.as_posix() for path in sorted(Path("runs").glob("*/resolved.json"))]


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A YAML file, or a shipped recipe's name such as demo.", autocompletion=_recipe_names
    ),
]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's folder, its URL (s3://bucket/runs/demo), or a recipe.", autocompletion=_run_folders
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe, for example data.limit=100."),
]
Until = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")]
StageName = Annotated[str | None, typer.Option("--stage", metavar="STAGE", help="Which of the run's stages.")]


def _path(value: Path | None) -> Path | None:
    try:
        return value if value is None else user_path(str(value))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def in_path(value: Any) -> Any:
    """Callback of an option that is read: `~` is the home folder; of several paths none may stand twice."""
    if not isinstance(value, list):
        return _path(value)
    paths = [_path(path) for path in value]
    if twice := [path for position, path in enumerate(paths) if path in paths[:position]]:
        raise typer.BadParameter(f"{twice[0]} stands twice")
    return paths


def out_file(value: Path | None) -> Path | None:
    """Callback of an option that names a file to write: whether it can be written is seen before any work."""
    return _target(value, folder=False)


def out_folder(value: Path | None) -> Path | None:
    """Callback of an option that names a folder to write into."""
    return _target(value, folder=True)


def _target(value: Path | None, *, folder: bool) -> Path | None:
    path = _path(value)
    if path is not None and (mistake := target_mistake(path, folder=folder)):
        raise typer.BadParameter(mistake)
    return path


class Command(TyperCommand):
    """A command whose list options also take several values after one name: `--tasks LaMP_1 LaMP_2`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the name of a list option before each of its values, then parse."""
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        current, spread = None, []
        for position, word in enumerate(args):
            if word.startswith("-"):
                current = word if word in lists else None
            elif current is not None and args[position - 1] != current:
                spread.append(current)
            spread.append(word)
        return super().parse_args(ctx, spread)


def say(line: object) -> None:
    """Print one line as it is: no markup, no colours, no wrapping. Control characters become pictures."""
    print(visible(str(line)), flush=True)


def warn(line: object) -> None:
    """Print one line as `say` does, to the error stream."""
    print(visible(str(line)), file=sys.stderr, flush=True)


def check_stage(name: str | None, known: Any, option: str = "--until") -> None:
    """Raise TagprError if `name` is given and is none of the `known` stages."""
    if name is not None and name not in known:
        hint = did_you_mean(name, known)
        stages = f"the stages are {', '.join(known)}"
        raise TagprError(f"{option} {name}: no such stage; {f'{hint} ({stages})' if hint else stages}")


def full_install(module: str) -> Any:
    """Import a module that needs torch, Ray or verl; a missing package becomes one clear message."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tagpr_rl"):
            raise
        raise TagprError(
            f"the package '{error.name}' is not installed; `make install` (or `make install-gpu`) installs everything"
        ) from None
