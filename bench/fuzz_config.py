"""Fuzz what a user writes: recipes, overrides, sweeps, tag schemas. Seeded mutations; nothing but clear errors.

Run: python bench/fuzz_config.py --n 100000 --seed 0
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from tagpr_rl.config import dump_recipe, load_recipe, parse_override, recipe_from_dict, set_key
from tagpr_rl.documents import parse_json, parse_yaml
from tagpr_rl.run.open import RECIPES
from tagpr_rl.run.sweep import plan_seed, sweep_from_dict
from tagpr_rl.tags.schema import default_schema, schema_from_mapping, to_mapping
from tagpr_rl.types import TagprError

JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 2**31, 2**63, 10**30, 1.0, 0.5, -0.5, 1e300, 1e-320, float("nan"), float("inf"),
    "", " ", "a", "yes", "null", "1", "1e-4", "010", "0x10", "1:30", "~", "~/x", "$HOME", "${x}", "a\\b", "a b", "\n",
    "\x00", "\U0001f600", "a" * 300, "s3://b/x", "LaMP_2", "sft", "guided", "data", "[", "{", "2025-31-12",
    [], [1], ["a", "a"], [None], [[]], {}, {"a": 1}, {"": 1}, {"kind": "grpo"}, {"kind": []}, {"kind": None}, {1: 2},
    [{}], ["LaMP_2", 3], [1e999], {"a.b": None}, {"name": "tag", "weight": 1},
)  # fmt: skip
TEXTS = (
    "<<: *x", "&x ", "*x", "!!python/object:os.system ", "!!set ", "!!binary x", "!x ", "? ", ": ", "- ", "| ", "> ",
    "{", "}", "[", "]", ",", "#", "'", '"', "\t", "%", "@", "`", "\x00", "\x85", "\u2028", "\ufeff", "\ud800", "---\n",
    "...\n", "\\", "~", "yes", "1_000", "010", "0x1f", "1:30", ".inf", ".nan", "1e999", "9" * 5000, "2025-31-12",
    "2025-12-31T25:61:00", "=", "<<", "null: 1", "\n", " ", "  ", "é", "東", '"\\U00110000"', '"\\ud800"', "!<!> ",
)  # fmt: skip
INTERNALS = re.compile(r"pydantic|Traceback|object at 0x|validation error|function-|NoneType|__")
LONGEST = 20_000


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values inside `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, inner in items for place in paths(inner, (*at, key)))]


def change_value(rng: random.Random, value: Any) -> Any:
    """One value, key or item of `value` replaced, removed, doubled or moved."""
    value = copy.deepcopy(value)
    places = [place for place in paths(value) if place]
    if not places:
        return rng.choice(JUNK)
    *above, last = rng.choice(places)
    block = value
    for part in above:
        block = block[part]
    kind = rng.randrange(6)
    if kind <= 2:
        block[last] = copy.deepcopy(rng.choice(JUNK))
    elif kind == 3:
        del block[last]
    elif kind == 4 and isinstance(block, dict):
        key = rng.choice([*(key for key in JUNK if key.__hash__), f"{last}x", str(last)[:-1]])
        block[key] = block.pop(last)
    else:
        other = rng.choice(places)
        taken = value
        for part in other:
            taken = (
                taken[part] if isinstance(taken, dict | list) and other[: len(above) + 1] != (*above, last) else taken
            )
        block[last] = copy.deepcopy(taken)
    return value


def part_of(rng: random.Random, value: dict[str, Any]) -> dict[str, Any]:
    """One to three keys of a block and of each block below."""
    keys = rng.sample(sorted(value), min(rng.randint(1, 3), len(value)))
    return {
        key: part_of(rng, value[key]) if isinstance(value[key], dict) and value[key] else value[key] for key in keys
    }


def merged(right: Any, top: Any) -> Any:
    """`top` over `right`, block by block."""
    if not isinstance(right, dict) or not isinstance(top, dict):
        return top
    return {**right, **{key: merged(right.get(key), value) for key, value in top.items()}}


def change_text(rng: random.Random, text: str) -> str:
    """One to three edits: cut, insert, change a character, double or move or indent a line."""
    for _ in range(rng.randint(1, 3)):
        at, lines, kind = rng.randrange(len(text) + 1), text.split("\n"), rng.randrange(7)
        row = rng.randrange(len(lines))
        if kind == 0:
            text = text[:at] + text[at + rng.randint(1, 20) :]
        elif kind <= 2:
            text = text[:at] + rng.choice(TEXTS) + text[at:]
        elif kind == 3:
            text = text[:at] + chr(rng.randrange(0x110000)) + text[at + 1 :]
        elif kind == 4:
            text = "\n".join([*lines[:row], lines[row], *lines[rng.randrange(len(lines)) :]])
        elif kind == 5:
            text = "\n".join([*lines[:row], " " * rng.randint(1, 3) + lines[row], *lines[row + 1 :]])
        else:
            line, colon, _ = lines[row].partition(":")
            text = "\n".join([*lines[:row], f"{line}{colon} {rng.choice(TEXTS)}", *lines[row + 1 :]])
    return text


def read_recipe(raw: Any) -> None:
    """Load a recipe; one that is right must be the same after it was written and read again."""
    if not isinstance(raw, dict):
        raise TagprError("no mapping")
    recipe = recipe_from_dict(raw, source="r.yaml")
    text = json.dumps(dump_recipe(recipe), allow_nan=False)
    assert recipe_from_dict(json.loads(text), source="again") == recipe, text


def read_sweep(raw: Any) -> None:
    """Load a sweep."""
    if not isinstance(raw, dict):
        raise TagprError("no mapping")
    sweep_from_dict(raw, source="s.yaml")


def combine_arms(raw: Any) -> None:
    """Combine a sweep's arms for its first seed."""
    sweep = sweep_from_dict(raw, source="s.yaml")
    if (folder := RECIPES / "sweeps" / sweep.recipe).is_file() and len(sweep.all_arms()) < 20:
        plan_seed(sweep.model_copy(update={"recipe": folder}), sweep.seeds[0])


def read_schema(raw: Any) -> None:
    """Build a schema; a right one is the same after it was written and read again."""
    schema = schema_from_mapping(raw, where="tags.yaml")
    assert schema_from_mapping(json.loads(json.dumps(to_mapping(schema))), where="again") == schema


def overridden(rng: random.Random, raw: dict[str, Any]) -> Any:
    """The recipe after one to three overrides with mutated keys and values."""
    raw = copy.deepcopy(raw)
    for _ in range(rng.randint(1, 3)):
        place = rng.choice([place for place in paths(raw) if place and all(isinstance(part, str) for part in place)])
        value = rng.choice((*TEXTS, *(json.dumps(junk, default=str) for junk in JUNK[:40])))
        text = f"{'.'.join(place)}={value}"
        key, parsed = parse_override(change_text(rng, text) if rng.random() < 0.3 else text)
        set_key(raw, key, parsed, where=f"override '{text}'")
    return raw


def sources() -> tuple[tuple[str, Any, Callable[[Any], None]], ...]:
    """(name, plain values of a right file, its reader)."""
    recipes = [
        ("recipe", dump_recipe(load_recipe(RECIPES / name)), read_recipe) for name in ("smoke.yaml", "demo.yaml")
    ]
    recipes += [("recipe", parse_yaml((RECIPES / "demo.yaml").read_text(encoding="utf-8"), "demo"), read_recipe)]
    sweeps = [
        ("sweep", parse_yaml(path.read_text(encoding="utf-8"), "sweep"), read_sweep)
        for path in sorted((RECIPES / "sweeps").glob("*.yaml"))
    ]
    return (*recipes, *sweeps, ("schema", to_mapping(default_schema()), read_schema))


def one(rng: random.Random, source: tuple[str, Any, Callable[[Any], None]]) -> str:
    """One mutated input; "ok" or "refused". Any other exception is a failure of the product."""
    name, right, read = source
    way = rng.random()
    try:
        if way < 0.4:
            value = right
            for _ in range(rng.randint(1, 3)):
                value = change_value(rng, value)
        elif way < 0.6 and name == "recipe":
            value = overridden(rng, right)
        elif way < 0.9:
            value = parse_yaml(change_text(rng, yaml.safe_dump(part_of(rng, right), sort_keys=False)), "x.yaml")
            value = merged(right, value) if isinstance(value, dict) else value
        else:
            value = parse_json(change_text(rng, json.dumps(right)), "x.json")
        read(value)
        if name == "sweep" and rng.random() < 0.1:
            combine_arms(value)
    except TagprError as error:
        text = str(error)
        assert text.strip() and len(text) < LONGEST and not INTERNALS.search(text), text[:2000]
        return "refused"
    return "ok"


def fuzz(n: int, seed: int) -> Counter[str]:
    """Run `n` mutated inputs: counts by kind of file and result. AssertionError, or any other error, on a failure."""
    rng = random.Random(seed)
    rights = sources()
    counts: Counter[str] = Counter()
    for index in range(n):
        source = rng.choice(rights)
        try:
            counts[f"{source[0]} {one(rng, source)}"] += 1
        except Exception as error:
            error.add_note(f"input {index} of seed {seed} ({source[0]})")
            raise
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.process_time()
    counts = fuzz(args.n, args.seed)
    for name, count in sorted(counts.items()):
        print(f"{name:18} {count:>9}")
    print(f"{args.n} inputs, seed {args.seed}: no failure; {time.process_time() - started:.0f} CPU s")


if __name__ == "__main__":
    main()
