"""A sweep: arms that differ in a few keys of one recipe, over seeds, as one recipe per seed.

Stages with the same content (their own block and all that they read) are one stage, whichever arm needs them, so a
seed is one run folder: it resumes, verifies and reports as every run does, and one evaluation asks all arms'
models the same questions. A stage that several arms need in different forms is called `<stage>_<arm>`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from tagpr_rl.config import (
    GrpoStage,
    Recipe,
    SftStage,
    dump_recipe,
    needed_for,
    parse_override,
    read_raw,
    recipe_from_dict,
    set_key,
    upstream,
)
from tagpr_rl.config.base import Closed, Count, Once, RunName, Seed, UserPath, worded
from tagpr_rl.config.explain import explain
from tagpr_rl.documents import read_mapping
from tagpr_rl.files import sha256_json
from tagpr_rl.types import TagprError

EVAL = "eval"
MOST_ARMS = 1000
"""Of a grid."""
Overrides = dict[str, Any]
ArmName = Annotated[str, worded(r"[a-z][a-z0-9_]*", "a name of small letters, digits and `_`")]


class Sweep(Closed):
    """A sweep file. `recipe` is relative to the file; `out` holds a folder of the sweep's name."""

    name: RunName
    recipe: UserPath
    out: UserPath = Path("runs/sweeps")
    seeds: Annotated[tuple[Seed, ...], Once] = Field(default=(1, 2, 3), min_length=1)
    """Each sets the seed of every stage and of a tiny model's first weights. The data stay the same."""
    overrides: Overrides = Field(default_factory=dict)
    """Keys of the recipe, for all arms."""
    metric: Literal["score", "strict_score"] = "score"
    """score: of the lenient answer, mean over tasks. strict_score: a malformed response counts as 0."""
    questions: Count | None = None
    """At most this many held-out questions (None = all); the same for all arms."""
    arms: dict[ArmName, Overrides] = Field(default_factory=dict)
    """Arm -> keys below `stages.`; null removes a stage. The first arm is what the others are compared with."""
    grid: dict[str, Annotated[tuple[float | int | str | bool, ...], Once]] = Field(default_factory=dict)
    """Key -> values: one more arm per combination."""
    also: Annotated[tuple[str, ...], Once] = ()
    """Stages of the first arm whose weights are evaluated as well, for example [sft]."""

    @model_validator(mode="after")
    def _arms_named(self) -> Sweep:
        arms = self.all_arms()
        if len(arms) < 2:
            raise ValueError("a sweep compares two arms or more; give `arms` or a `grid`")
        wrong = sorted({key for keys in arms.values() for key in keys if not key.startswith("stages.")})
        if wrong:
            raise ValueError(
                f"arms share one run per seed, so they may differ below `stages.` only, not in {', '.join(wrong)}; put "
                "it into `overrides` (all arms) or make another sweep"
            )
        return self

    def all_arms(self) -> dict[str, Overrides]:
        """Arms by name, those of the grid after the named ones. ValueError if a grid arm's name is taken."""
        arms = dict(self.arms)
        if (size := prod(map(len, self.grid.values()))) > MOST_ARMS:
            raise ValueError(f"grid: {size:,} combinations, and each is trained; use at most {MOST_ARMS}")
        for values in product(*self.grid.values()) if self.grid else ():
            keys = dict(zip(self.grid, values, strict=True))
            name = "_".join(f"{key.rpartition('.')[2]}_{_plain(value)}" for key, value in keys.items())
            if name in arms:
                raise ValueError(f"grid: two arms are called '{name}'")
            arms[name] = keys
        return arms


def _plain(value: float | int | str | bool) -> str:
    return str(value).lower().replace(".", "p").replace("-", "m")


@dataclass(frozen=True, slots=True)
class SeedPlan:
    """One seed's run: the combined recipe, and which of its stages is whose final model."""

    seed: int
    recipe: Recipe
    models: Mapping[str, str]
    """Arm -> stage of `recipe` that holds the arm's final weights; arms that come to the same share one."""
    also: Mapping[str, str]
    """Stage of the first arm -> its name in `recipe`."""


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read and validate a sweep file. Raises TagprError with every mistake.

    `overrides` (key=value) are keys of the recipe, for all arms; `name`, `out`, `questions` and `metric` are the
    sweep's own.
    """
    raw = read_mapping(path, "sweep")
    if "stages" in raw:
        raise TagprError(f"{path} is a recipe, not a sweep (it has stages); use `tagpr run {path}`")
    for key, value in map(parse_override, overrides):
        if key in ("name", "out", "questions", "metric"):
            raw[key] = value
        elif key in Sweep.model_fields:
            raise TagprError(f"{key}=... stands in the sweep's file ({path}); of its seeds --seeds chooses some")
        else:
            own = raw.get("overrides")
            raw["overrides"] = {**(own if isinstance(own, dict) else {}), key: value}
    sweep = sweep_from_dict(raw, source=str(path))
    return sweep.model_copy(update={"recipe": path.parent / sweep.recipe})


def sweep_from_dict(raw: dict[str, Any], *, source: str) -> Sweep:
    """Validate plain values. Raises TagprError with every mistake."""
    try:
        return Sweep.model_validate(raw)
    except ValidationError as error:
        lines = explain(error, Sweep)
        raise TagprError(f"sweep {source} has {len(lines)} mistake(s):\n  " + "\n  ".join(lines)) from None


def plan_seed(sweep: Sweep, seed: int) -> SeedPlan:
    """The run of one seed. The sweep's overrides come before each arm's own keys."""
    raw, removed = read_raw(sweep.recipe)
    for key, value in sweep.overrides.items():
        removed |= set_key(raw, key, value, where=f"sweep {sweep.name}, overrides")
    evaluation = _take_evaluations(raw)
    arms = {
        arm: _seeded(arm_recipe(raw, arm, keys, source=f"{sweep.recipe} (arm '{arm}')", removed=removed), seed)
        for arm, keys in sweep.all_arms().items()
    }
    evaluation |= {"kind": "evaluate", "controls": [], "questions": sweep.questions, "seed": seed}
    return combine(arms, sweep, seed, evaluation)


def _take_evaluations(raw: dict[str, Any]) -> dict[str, Any]:
    """Take all evaluate stages out of `raw`: the sweep has its own. Returns the last one's block."""
    stages = raw.get("stages") or {}
    names = [name for name, block in stages.items() if isinstance(block, dict) and block.get("kind") == "evaluate"]
    blocks = [stages.pop(name) for name in names]
    return {key: value for key, value in (blocks[-1] if blocks else {}).items() if key == "temperature"}


def arm_recipe(raw: Mapping[str, Any], arm: str, keys: Overrides, *, source: str, removed: set[str]) -> Recipe:
    """The recipe of one arm. TagprError if it names no stage of the recipe."""
    own = copy.deepcopy(dict(raw))
    gone = set(removed)
    for key, value in keys.items():
        stage = key.split(".")[1]
        if stage not in own["stages"]:
            raise TagprError(
                f"{source}: {key} names no stage; the stages are {', '.join(own['stages'])} (evaluations are the "
                "sweep's own)"
            )
        gone |= set_key(own, key, value, where=source)
    return recipe_from_dict(own, source=source, removed=gone)


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with `seed` in every stage and in a tiny model."""
    raw = dump_recipe(recipe)
    for block in raw["stages"].values():
        block["seed"] = seed
    if raw["model"].get("tiny") is not None:
        raw["model"]["tiny"]["seed"] = seed
    return recipe_from_dict(raw, source=f"seed {seed}")


def final_model(recipe: Recipe) -> str:
    """The last stage that makes weights: SFT or GRPO."""
    names = [name for name, stage in recipe.stages.items() if isinstance(stage, SftStage | GrpoStage)]
    if not names:
        raise TagprError("a sweep's recipe needs a stage of kind sft or grpo, whose weights are evaluated")
    return names[-1]


def combine(arms: Mapping[str, Recipe], sweep: Sweep, seed: int, evaluation: Mapping[str, Any]) -> SeedPlan:
    """One recipe with every arm's stages, equal ones once, and one evaluation of all final models.

    TagprError if an arm's stage would read another arm's data or chains (see `_check`).
    """
    blocks: dict[str, dict[str, Any]] = {}
    made: dict[str, str] = {}
    names: dict[str, dict[str, str]] = {}
    for arm, recipe in arms.items():
        names[arm] = _add(arm, recipe, blocks, made)
    first = next(iter(arms))
    models = {arm: names[arm][final_model(recipe)] for arm, recipe in arms.items()}
    unknown = [name for name in sweep.also if name not in names[first]]
    if unknown:
        raise TagprError(
            f"sweep {sweep.name}: also: arm '{first}' has no stage '{unknown[0]}' ({', '.join(names[first])})"
        )
    also = {name: names[first][name] for name in sweep.also}
    evaluated = list(dict.fromkeys([*also.values(), *models.values()]))
    raw = dump_recipe(arms[first]) | {"name": f"{sweep.name}-seed{seed}", "out": str(sweep.out / sweep.name)}
    if raw["mirror"] is not None:
        raw["mirror"] = f"{raw['mirror'].rstrip('/')}/{sweep.name}"
    raw["stages"] = {**blocks, EVAL: {**evaluation, "models": evaluated}}
    recipe = recipe_from_dict(raw, source=f"sweep {sweep.name}, seed {seed}")
    for arm, own in arms.items():
        _check(arm, own, recipe, names[arm])
    return SeedPlan(seed, recipe, models, also)


def _add(arm: str, recipe: Recipe, blocks: dict[str, dict[str, Any]], made: dict[str, str]) -> dict[str, str]:
    """Add the arm's stages to `blocks` if they are not there yet; the arm's stage -> its name there."""
    dumped = dump_recipe(recipe)["stages"]
    names: dict[str, str] = {}
    digests: dict[str, str] = {}
    for name in needed_for(recipe, final_model(recipe)):
        block = dict(dumped[name])
        stage = recipe.stages[name]
        if isinstance(stage, GrpoStage) and not stage.uses_prmu:  # PRMU is not asked, so it makes no difference
            block |= {"prmu": None, "prmu_users": "own"}
        references = {key: block[key] for key in ("init", "prmu") if block.get(key) is not None}
        content = {key: value for key, value in block.items() if key not in references}
        read = {other: digests[other] for other in upstream(recipe, name)}
        roles = {key: digests[other] for key, other in references.items()}
        digest = sha256_json([content, roles, sorted(read.values())])
        digests[name] = digest
        if digest not in made:
            new = name if name not in blocks and name != EVAL else f"{name}_{arm}"
            if new in blocks:
                raise TagprError(f"arm '{arm}': stage '{new}' exists twice; give the arm or the stage another name")
            made[digest] = new
            blocks[new] = block | {key: names[other] for key, other in references.items()}
        names[name] = made[digest]
    return names


def _check(arm: str, own: Recipe, combined: Recipe, names: Mapping[str, str]) -> None:
    """TagprError unless each of the arm's stages reads, in the combined recipe, what it reads in the arm's own.

    A stage reads the *nearest* earlier data, prompts or chains stage, which may be another arm's.
    """
    for name, new in names.items():
        expected, actual = {names[other] for other in upstream(own, name)}, set(upstream(combined, new))
        if expected != actual:
            raise TagprError(
                f"arm '{arm}': stage '{name}' would read {', '.join(sorted(actual - expected))} of another arm instead "
                f"of {', '.join(sorted(expected - actual))}; put arms that change the same earlier stage next to each "
                "other, or make another sweep"
            )
