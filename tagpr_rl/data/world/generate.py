"""The embedded world: seeded users with hidden tastes, written as LaMP's official files (all of it ours).

A taste shows only in a user's profile, so the same question has different golds for different users. Because
the rules are known, the best score without the profile (*blind ceiling*) and with it (*oracle ceiling*) are
computed exactly for the very questions that are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Final

from tagpr_rl.data.lamp import write_lamp
from tagpr_rl.data.world.bounds import best_answer, mean
from tagpr_rl.data.world.rules import WORLD_TASKS, TaskRules, world_rules
from tagpr_rl.files import write_json
from tagpr_rl.types import LampRecord, ProfileItem, TagprError

SPLITS: Final = ("train", "dev", "test")
USER, TIME = "user", "time"
_FIRST_DAY: Final = date(2018, 1, 1)
_DAYS_BETWEEN: Final = 30


@dataclass(frozen=True, slots=True)
class WorldConfig:
    """Size and rules of a world. Two seeds give two disjoint sets of users."""

    seed: int = 0
    """0 to 9999."""
    train_users: int = 1000
    dev_users: int = 200
    test_users: int = 0
    time_users: int = 100
    questions_per_user: int = 8
    """Per user over all tasks: a multiple of 4 (each task gets a quarter)."""
    profile_min: int = 8
    profile_max: int = 12
    """Profile items per user and task, both ends included; at least 3."""
    second_share: float = 0.2
    """LaMP_1: share of a user's titles from the second field, [0, 0.5)."""
    desks: int = 3
    """LaMP_4: 1 to 3; a user has a headline style for each desk."""

    def __post_init__(self) -> None:
        """Refuse values for which the rules or the ceilings do not hold (TagprError)."""
        checks = (
            ("seed", self.seed, 0 <= self.seed <= 9999, "use 0 to 9999"),
            ("train_users", self.train_users, 1 <= self.train_users <= 90000, "use 1 to 90000"),
            ("dev_users", self.dev_users, 1 <= self.dev_users <= 90000, "use 1 to 90000"),
            ("test_users", self.test_users, 0 <= self.test_users <= 90000, "use 0 to 90000"),
            ("time_users", self.time_users, 0 <= self.time_users <= 90000, "use 0 to 90000"),
            (
                "questions_per_user",
                self.questions_per_user,
                self.questions_per_user >= 4 and self.questions_per_user % 4 == 0,
                "use a multiple of 4 (one or more questions for each of the four tasks)",
            ),
            ("profile_min", self.profile_min, 3 <= self.profile_min <= self.profile_max, "use 3 or more, <= max"),
            ("profile_max", self.profile_max, self.profile_max <= 20, "use 20 or less"),
            ("second_share", self.second_share, 0 <= self.second_share < 0.5, "use [0, 0.5)"),
            ("desks", self.desks, 1 <= self.desks <= 3, "use 1, 2 or 3"),
        )
        for key, value, good, remedy in checks:
            if not good:
                raise TagprError(f"world.{key} is {value!r}: {remedy}")

    def rules(self) -> dict[str, TaskRules]:
        """The rules of each task under this configuration."""
        return world_rules(second_share=self.second_share, desks=self.desks)


@dataclass(frozen=True, slots=True)
class World:
    """All records of a world, by setting ("user" or "time") and split."""

    config: WorldConfig
    by_split: Mapping[tuple[str, str], tuple[LampRecord, ...]]

    def records(self, split: str, setting: str = USER, task: str | None = None) -> tuple[LampRecord, ...]:
        """The records of a split, in order of user, then task; optionally of one task only."""
        if (setting, split) not in self.by_split:
            have = ", ".join("/".join(key) for key in self.by_split)
            raise TagprError(f"the world has no {setting} split {split!r}: use one of {have}")
        found = self.by_split[setting, split]
        return tuple(r for r in found if task is None or r.task == task)

    def bounds(self, split: str, setting: str = USER) -> dict[str, dict[str, float]]:
        """{"blind": {task: score, ..., "mean": m}, "oracle": {...}}: exact ceilings for these questions."""
        return {
            "blind": ceilings(self.config, self.records(split, setting), lambda record: ()),
            "oracle": ceilings(self.config, self.records(split, setting), lambda record: record.profile),
        }


def answers(config: WorldConfig, record: LampRecord, items: Sequence[ProfileItem]) -> dict[str, float]:
    """Exact answer distribution for a record's question, given only these profile items."""
    return config.rules()[record.task].posterior(record.input, [item.fields for item in items])


def ceilings(
    config: WorldConfig,
    records: Sequence[LampRecord],
    visible: Callable[[LampRecord], Sequence[ProfileItem]],
) -> dict[str, float]:
    """Best expected task reward per task, and their mean, when `visible(record)` items can be read."""
    rules = config.rules()
    scores: dict[str, list[float]] = {}
    for record in records:
        spread = rules[record.task].posterior(record.input, [item.fields for item in visible(record)])
        scores.setdefault(record.task, []).append(best_answer(record.task, spread).score)
    result = {task: mean(values) for task, values in scores.items()}
    return result | {"mean": mean(list(result.values()))}


def _user_records(config: WorldConfig, rules: TaskRules, split: str, index: int, user_id: str) -> list[LampRecord]:
    """One user's records of one task in the user split: one profile, new questions."""
    rng = Random(f"{config.seed}/{USER}/{split}/{index}/{rules.task}")
    taste = rules.taste(rng)
    n = rng.randint(config.profile_min, config.profile_max)
    fields = rules.profile(rng, taste, n)
    items = tuple(ProfileItem(f"{user_id}{i:02d}", item) for i, item in enumerate(fields))
    records = []
    for q in range(config.questions_per_user // len(WORLD_TASKS)):
        question = rules.question(rng, taste, fields)
        question_id = f"{rules.task[-1]}{SPLITS.index(split)}{user_id}{q}"
        records.append(LampRecord(question_id, rules.task, split, user_id, question.input, items, question.gold))
    return records


def _time_records(config: WorldConfig, rules: TaskRules, index: int, user_id: str) -> dict[str, list[LampRecord]]:
    """One user's records of one task in the time split: dated items, and later questions see more of them.

    The train questions see the first `profile_min` items, the dev questions all the items.
    """
    rng = Random(f"{config.seed}/{TIME}/{index}/{rules.task}")
    taste = rules.taste(rng)
    n = rng.randint(config.profile_min, config.profile_max)
    fields = rules.profile(rng, taste, n)
    day = [_FIRST_DAY + timedelta(days=_DAYS_BETWEEN * i + rng.randrange(_DAYS_BETWEEN)) for i in range(n)]
    items = tuple(ProfileItem(f"{user_id}{i:02d}", item, day[i].isoformat()) for i, item in enumerate(fields))
    found: dict[str, list[LampRecord]] = {"train": [], "dev": []}
    for split, seen in (("train", config.profile_min), ("dev", n)):
        for q in range(config.questions_per_user // len(WORLD_TASKS)):
            question = rules.question(rng, taste, fields[:seen])
            question_id = f"{rules.task[-1]}{SPLITS.index(split)}{user_id}{q}"
            found[split].append(
                LampRecord(question_id, rules.task, split, user_id, question.input, items[:seen], question.gold)
            )
    return found


def make_world(config: WorldConfig) -> World:
    """Draw a world. The same configuration gives the same world on every machine."""
    rules = config.rules()
    by_split: dict[tuple[str, str], list[LampRecord]] = {}
    sizes = {"train": config.train_users, "dev": config.dev_users, "test": config.test_users}
    number = 0
    for split, users in sizes.items():
        if not users:
            continue
        found = by_split.setdefault((USER, split), [])
        for index in range(users):
            user_id = f"{1 + config.seed}{number:06d}"
            number += 1
            for task in WORLD_TASKS:
                found += _user_records(config, rules[task], split, index, user_id)
    for index in range(config.time_users):
        user_id = f"{1 + config.seed}{number:06d}"
        number += 1
        for task in WORLD_TASKS:
            for split, records in _time_records(config, rules[task], index, user_id).items():
                by_split.setdefault((TIME, split), []).extend(records)
    return World(config, {key: tuple(records) for key, records in by_split.items()})


def write_world(folder: Path, config: WorldConfig) -> World:
    """Write `folder/user` (and `folder/time`) in LaMP's layout, then `folder/world.json`; return the world.

    world.json is {"config", "bounds": {"user/dev": {"blind": {...}, "oracle": {...}}, ...}, "questions": {...}}.
    """
    world = make_world(config)
    for setting, split in world.by_split:
        for task in WORLD_TASKS:
            write_lamp(folder / setting, task, split, world.records(split, setting, task))
    bounds = {f"{setting}/{split}": world.bounds(split, setting) for setting, split in world.by_split}
    counts = {f"{setting}/{split}": len(records) for (setting, split), records in world.by_split.items()}
    write_json(folder / "world.json", {"config": asdict(config), "bounds": bounds, "questions": counts})
    return world
