"""What a RUN or a RECIPE on the command line means: the only code that turns either into a recipe and its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tagpr_rl.config import Recipe, load_recipe, recorded_recipe
from tagpr_rl.files import shipped
from tagpr_rl.run.layout import RunDir
from tagpr_rl.run.mirror import Mirror, is_url
from tagpr_rl.run.resume import exclusive
from tagpr_rl.types import TagprError, did_you_mean

RECIPES = shipped("recipes")
"""The shipped recipes."""


class Run(NamedTuple):
    """A recipe and the folder of its run, which need not exist yet."""

    recipe: Recipe
    folder: RunDir


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every shipped recipe and sweep: `demo`, `lamp/qwen3_8b`, `sweeps/ablations`."""
    return {path.relative_to(RECIPES).with_suffix("").as_posix(): path for path in sorted(RECIPES.rglob("*.yaml"))}


def recipe_path(recipe: str | Path) -> Path:
    """The file that RECIPE means: a path, or the name of a shipped recipe. Raises TagprError for neither."""
    path = Path(os.path.expanduser(recipe))
    if path.is_file():
        return path
    if path.is_dir():
        raise TagprError(f"recipe {recipe} is a folder; name a YAML file in it")
    shipped = shipped_recipes()
    name = str(recipe)
    if name in shipped:
        return shipped[name]
    hint = did_you_mean(name, shipped, otherwise=f"shipped recipes: {', '.join(shipped) or 'none'}")
    raise TagprError(
        f"recipe {recipe}: no such file, and no shipped recipe has that name; {hint} (looked from {Path.cwd()})"
    )


def open_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load RECIPE (see `recipe_path`) with `key=value` overrides."""
    return load_recipe(recipe_path(recipe), tuple(overrides))


def planned_run(recipe: Recipe) -> Run:
    """The run that `recipe` makes: `<out>/<name>`."""
    return Run(recipe, RunDir(recipe.out / recipe.name))


def open_run(
    run: str | Path,
    overrides: Sequence[str] = (),
    *,
    started: bool = True,
    out: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Run:
    """The run that RUN means: a run's folder, its URL, or a recipe (then its folder `<out>/<name>`).

    The recipe is the one that was run, as `resolved.json` has it. `started=False` also accepts a recipe whose run does
    not exist yet, and takes the recipe as its file is now. A run at a URL is first copied into `out` (default: its
    recipe's `out`); `say` gets one line for each copied thing. Raises TagprError for anything that is no run, and for
    overrides of a run whose recipe is fixed.
    """
    target = os.path.expanduser(str(run))
    if out is not None and not is_url(target):
        raise TagprError(f"--out {out} belongs to a URL; {target} is used where it is")
    if is_url(target):
        _refuse_overrides(target, overrides)
        return _pull(target, out, say)
    if Path(target).is_dir():
        _refuse_overrides(target, overrides)
        folder = RunDir(Path(target))
        return Run(read_resolved(folder), folder)
    shipped = shipped_recipes()
    if not Path(target).is_file() and target not in shipped:
        hint = did_you_mean(target, shipped, otherwise="RUN is a folder such as runs/demo, a URL, or a recipe")
        raise _not_a_run(Path(target), f"it does not exist; {hint}")
    planned = planned_run(open_recipe(target, overrides))
    return Run(read_resolved(planned.folder), planned.folder) if started else planned


def read_resolved(folder: RunDir) -> Recipe:
    """The recipe that a run was made from. Raises TagprError if the folder has none, or a damaged one."""
    path = folder.resolved
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise _not_a_run(folder.root, f"it has no {path.name}; `tagpr run RECIPE` makes a run") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TagprError(f"{path} is not valid JSON ({error}); name the recipe instead") from None
    if not isinstance(raw, dict):
        raise TagprError(f"{path} must be a mapping, not {type(raw).__name__}; name the recipe instead")
    return recorded_recipe(raw, source=str(path))


def _not_a_run(path: Path, reason: str) -> TagprError:
    return TagprError(f"{path} is no run's folder: {reason}")


def _refuse_overrides(run: str, overrides: Sequence[str]) -> None:
    if overrides:
        raise TagprError(f"{run} is a run, whose recipe is fixed ({' '.join(overrides)}); overrides belong to a recipe")


def _pull(url: str, out: Path | None, say: Callable[[str], None]) -> Run:
    mirror = Mirror(url)
    recipe = mirror.recipe()
    opened = planned_run(recipe if out is None else recipe.model_copy(update={"out": out}))
    with exclusive(opened.folder):
        for line in mirror.pull(opened.recipe, opened.folder):
            say(f"from {mirror.url}: {line}")
    return opened
