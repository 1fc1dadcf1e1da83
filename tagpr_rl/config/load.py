"""From YAML files and `key=value` overrides to a Recipe, with every mistake named at once.

A file may extend another one. An unknown key is an error that names the nearest known key; a key of an earlier release
is one that says what to do instead (retired.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tagpr_rl.config.explain import explain
from tagpr_rl.config.recipe import Recipe
from tagpr_rl.config.retired import without_retired
from tagpr_rl.documents import parse_yaml, read_mapping
from tagpr_rl.files import user_path
from tagpr_rl.types import TagprError, did_you_mean


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read `path`, follow `extends`, apply `key=value` overrides and validate.

    Relative paths inside the recipe are taken as given (relative to the working directory), except
    `extends`, which is relative to the file that names it. Raises TagprError with every mistake found.
    """
    raw, removed = read_raw(path)
    for override in overrides:
        key, value = parse_override(override)
        removed |= set_key(raw, key, value, where=f"override '{override}'")
    return recipe_from_dict(raw, source=str(path), removed=removed)


def read_raw(path: Path) -> tuple[dict[str, Any], set[str]]:
    """A recipe file as plain values, `extends` followed, and the names of stages removed by `null` on the way."""
    return _read_extended(path, ())


def recipe_from_dict(raw: dict[str, Any], *, source: str, removed: Collection[str] = ()) -> Recipe:
    """Validate a plain dict. Raises TagprError listing every mistake with the nearest known key.

    `removed`: stages that `null` took out, so that the error for one that is still needed says so.
    """
    if strange := sorted({"seeds", "arms", "grid", "recipe"} & raw.keys()):
        raise TagprError(f"{source} is a sweep, not a recipe (it has {', '.join(strange)}); use `tagpr sweep {source}`")
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        mistakes = explain(error, Recipe, raw["stages"] if isinstance(raw.get("stages"), dict) else ())
        for name in removed:
            missing = re.compile(rf"no earlier stage is called '{name}'(; did you mean '\w+'\?)?")
            why = f"it needs stage '{name}', which stages.{name}=null removes; name another stage or keep it"
            mistakes = [missing.sub(why, line) for line in mistakes]
        raise TagprError(f"recipe {source} has {len(mistakes)} mistake(s):\n  " + "\n  ".join(mistakes)) from None


def recorded_recipe(raw: dict[str, Any], *, source: str) -> Recipe:
    """The recipe that an earlier run recorded, without keys that have been retired since."""
    return recipe_from_dict(without_retired(raw), source=source)


def dump_recipe(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as plain JSON types; `recipe_from_dict(dump_recipe(r)) == r`."""
    return recipe.model_dump(mode="json")


def _read_extended(path: Path, chain: tuple[Path, ...]) -> tuple[dict[str, Any], set[str]]:
    path = path.resolve() if chain else path
    if path.resolve() in chain:
        raise TagprError(f"recipe {path} extends itself: {' -> '.join(map(str, (*chain, path)))}")
    raw = read_mapping(path, "recipe")
    parent = raw.pop("extends", None)
    if parent is not None and not isinstance(parent, str):
        raise TagprError(f"recipe {path}: extends: a file's path is expected (got {parent!r})")
    base: dict[str, Any] = {}
    removed: set[str] = set()
    if parent is not None:
        try:
            above = path.parent / user_path(parent)
        except ValueError as error:
            raise TagprError(f"recipe {path}: extends: {error}") from None
        base, removed = _read_extended(above.resolve(), (*chain, path.resolve()))
    merged = _merge(base, raw)
    own, above_own = raw.get("stages"), base.get("stages")
    for name in [name for name, block in own.items() if block is None] if isinstance(own, dict) else []:
        known = above_own if isinstance(above_own, dict) else {}
        removed |= _remove_stage(merged, name, known=known, where=f"recipe {path}")
    return merged, removed


def _remove_stage(raw: dict[str, Any], name: str, *, known: Collection[str], where: str) -> set[str]:
    """Take the stage out of `raw`; {name}. TagprError if no stage has that name: `null` would do nothing."""
    if name not in known:
        hint = did_you_mean(str(name), known, otherwise=f"the stages are {', '.join(known) or 'none'}")
        raise TagprError(f"{where}: stages.{name}=null removes a stage, and there is none called '{name}'; {hint}")
    del raw["stages"][name]
    return {name}


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`top` over `base`, block by block; lists and scalars are replaced."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def parse_override(override: str) -> tuple[str, Any]:
    """(key, value) of `a.b.c=value`; the value is YAML (so `[LaMP_2,LaMP_4]`, `3e-4`, `null` work)."""
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[\w.-]+", key):
        raise TagprError(
            f"override '{override}' is not of the form key=value (no spaces around =), for example data.limit=100"
        )
    if not text.strip():
        raise TagprError(f"override '{override}' has no value; write {key}=null if none is meant")
    return key, parse_yaml(text, f"override '{override}'")


def set_key(raw: dict[str, Any], key: str, value: Any, *, where: str) -> set[str]:
    """Set the dotted `key` in `raw`; `stages.<name>` with null removes that stage. The names of removed stages."""
    *parents, last = key.split(".")
    block = raw
    for part in parents:
        if block.get(part) is None:
            block[part] = {}
        below = block[part]
        if not isinstance(below, dict):
            raise TagprError(f"{where}: '{part}' is a value, not a block of keys")
        block = below
    if parents == ["stages"] and value is None:
        return _remove_stage(raw, last, known=block, where=where)
    block[last] = value
    return set()
