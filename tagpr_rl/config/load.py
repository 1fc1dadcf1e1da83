"""From YAML files and `key=value` overrides to a Recipe, with every mistake named at once.

A file may extend another one. An unknown key is an error that names the nearest known key; a key of an earlier release
is one that says what to do instead (retired.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from tagpr_rl.config.endpoints import BY_BLOCK, BY_NAME
from tagpr_rl.config.kinds import KINDS
from tagpr_rl.config.recipe import Recipe
from tagpr_rl.config.retired import remedy, without_retired
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
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        mistakes = [_explain(item) for item in error.errors()]
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


def read_yaml(path: Path, what: str = "recipe") -> dict[str, Any]:
    """A YAML file that holds a mapping, as plain values; `what` names it in errors (TagprError)."""
    if not path.is_file():
        raise TagprError(f"{what} {path}: no such file; recipes live in recipes/")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TagprError(f"{what} {path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise TagprError(f"{what} {path} must be a mapping of keys, not {type(raw).__name__}")
    return raw


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that reads 3e-4 as a float (YAML 1.1 wants 3.0e-4) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"key given twice: {sorted(map(str, twice))}{node.start_mark}")
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read_extended(path: Path, chain: tuple[Path, ...]) -> tuple[dict[str, Any], set[str]]:
    path = path.resolve() if chain else path
    if path.resolve() in chain:
        raise TagprError(f"recipe {path} extends itself: {' -> '.join(map(str, (*chain, path)))}")
    raw = read_yaml(path)
    parent = raw.pop("extends", None)
    base: dict[str, Any] = {}
    removed: set[str] = set()
    if parent is not None:
        base, removed = _read_extended((path.parent / str(parent)).resolve(), (*chain, path.resolve()))
    merged = _merge(base, raw)
    own = raw.get("stages")
    for name in [name for name, block in own.items() if block is None] if isinstance(own, dict) else []:
        removed |= _remove_stage(merged, name, known=base.get("stages") or {}, where=f"recipe {path}")
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
    if not equals or not key.strip():
        raise TagprError(f"override '{override}' is not of the form key=value, for example data.limit=100")
    try:
        return key.strip(), yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise TagprError(f"override '{override}': the value is not valid YAML: {error}") from None


def set_key(raw: dict[str, Any], key: str, value: Any, *, where: str) -> set[str]:
    """Set the dotted `key` in `raw`; `stages.<name>` with null removes that stage. The names of removed stages."""
    *parents, last = key.split(".")
    block = raw
    for part in parents:
        below = block.setdefault(part, {})
        if not isinstance(below, dict):
            raise TagprError(f"{where}: '{part}' is a value, not a block of keys")
        block = below
    if parents == ["stages"] and value is None:
        return _remove_stage(raw, last, known=list(block), where=where)
    block[last] = value
    return set()


def _models_at(location: tuple[Any, ...]) -> type[BaseModel] | None:
    """The config class that holds the last key of a pydantic error location."""
    current: Any = Recipe
    for part in location[:-1]:
        if part in KINDS and current is not Recipe:
            current = KINDS[part].config
        elif isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[part].annotation
            if get_origin(current) is dict:
                current = object
            choices = [get_args(a)[0] if get_origin(a) is Annotated else a for a in get_args(current)]
            blocks = [a for a in choices if isinstance(a, type) and issubclass(a, BaseModel)]
            current = blocks[0] if len(blocks) == 1 else current  # `Block | None`
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _explain(item: Any) -> str:
    """One pydantic error as one line: key, value, what is wrong, remedy."""
    location = tuple(item["loc"])
    # The discriminator value stands in the location after the stage's name: hide it.
    shown = [str(p) for i, p in enumerate(location) if not (i == 2 and location[0] == "stages")]
    shown = [part for part in shown if part not in (BY_NAME, BY_BLOCK)]  # nor which of two forms a value has
    key = ".".join(shown) or "recipe"
    if item["type"] == "extra_forbidden":
        if (instead := remedy(key)) is not None:
            return f"{key}: this key no longer exists; {instead}"
        owner = _models_at(location)
        known = list(owner.model_fields) if owner else []
        hint = did_you_mean(str(location[-1]), known, otherwise=f"known keys: {', '.join(known)}")
        return f"{key}: unknown key; {hint}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] in ("value_error", "missing", "union_tag_not_found"):
        return "\n  ".join(f"{key}: {line}" if key != "recipe" else line for line in message.splitlines())
    return f"{key}: {message} (got {item.get('input')!r})"
