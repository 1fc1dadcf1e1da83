"""The embedded world: seeded users with hidden tastes, as LaMP records.

A taste shows only in a user's profile, so the same question has different golds for different users. Because
the rules are known, the best score without the profile (*blind ceiling*) and with it (*oracle ceiling*) are
computed exactly for the very questions that are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random
from typing import Final

from tagpr_rl.data.world.bounds import best_answer, mean
from tagpr_rl.data.world.rules import WORLD_TASKS, TaskRules, world_rules
from tagpr_rl.types import LampRecord, ProfileItem, TagprError

SPLITS: Final = ("train", "dev")
USER, TIME = "user", "time"
PROFILE_MIN, PROFILE_MAX = 8, 12
"""Profile items per user and task, both ends included."""
_FIRST_DAY: Final = date(2018, 1, 1)
_DAYS_BETWEEN: Final = 30


@dataclass(frozen=True, slots=True)
class WorldConfig:
    """Size of a world. Two seeds give two disjoint sets of users."""

    seed: int = 0
    """0 to 9999."""
    train_users: int = 1000
    dev_users: int = 200
    time_users: int = 100
    questions_per_user: int = 8
    """Per user over all tasks: a multiple of 4 (each task gets a quarter)."""


@dataclass(frozen=True, slots=True)
class World:
    """All records of a world, by setting ("user" or "time") and split."""

    by_split: Mapping[tuple[str, str], tuple[LampRecord, ...]]

    def records(self, split: str, setting: str = USER, task: str | None = None) -> tuple[LampRecord, ...]:
        """The records of a split, in order of user, then task; optionally of one task only."""
        if (setting, split) not in self.by_split:
            have = ", ".join("/".join(key) for key in self.by_split)
            raise TagprError(f"the world has no {setting} split {split!r}: use one of {have}")
        return tuple(r for r in self.by_split[setting, split] if task is None or r.task == task)

    def bounds(self, split: str, setting: str = USER) -> dict[str, dict[str, float]]:
        """{"blind": {task: score, ..., "mean": m}, "oracle": {...}}: exact ceilings for these questions."""
        records = self.records(split, setting)
        return {"blind": ceilings(records, lambda _: ()), "oracle": ceilings(records, lambda record: record.profile)}


def answers(record: LampRecord, items: Sequence[ProfileItem]) -> dict[str, float]:
    """Exact answer distribution for a record's question, given only these profile items."""
    return world_rules()[record.task].posterior(record.input, [item.fields for item in items])


def ceilings(records: Sequence[LampRecord], visible: Callable[[LampRecord], Sequence[ProfileItem]]) -> dict[str, float]:
    """Best expected task reward per task, and their mean, when `visible(record)` items can be read."""
    rules = world_rules()
    scores: dict[str, list[float]] = {}
    for record in records:
        distribution = rules[record.task].posterior(record.input, [item.fields for item in visible(record)])
        scores.setdefault(record.task, []).append(best_answer(record.task, distribution).score)
    result = {task: mean(values) for task, values in scores.items()}
    return result | {"mean": mean(list(result.values()))}


def _user_records(config: WorldConfig, rules: TaskRules, split: str, index: int, user_id: str) -> list[LampRecord]:
    """One user's records of one task in the user split: one profile, new questions."""
    rng = Random(f"{config.seed}/{USER}/{split}/{index}/{rules.task}")
    taste = rules.taste(rng)
    n = rng.randint(PROFILE_MIN, PROFILE_MAX)
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

    The train questions see the first PROFILE_MIN items, the dev questions all the items.
    """
    rng = Random(f"{config.seed}/{TIME}/{index}/{rules.task}")
    taste = rules.taste(rng)
    n = rng.randint(PROFILE_MIN, PROFILE_MAX)
    fields = rules.profile(rng, taste, n)
    day = [_FIRST_DAY + timedelta(days=_DAYS_BETWEEN * i + rng.randrange(_DAYS_BETWEEN)) for i in range(n)]
    items = tuple(ProfileItem(f"{user_id}{i:02d}", item, day[i].isoformat()) for i, item in enumerate(fields))
    records: dict[str, list[LampRecord]] = {"train": [], "dev": []}
    for split, size in (("train", PROFILE_MIN), ("dev", n)):
        for q in range(config.questions_per_user // len(WORLD_TASKS)):
            question = rules.question(rng, taste, fields[:size])
            question_id = f"{rules.task[-1]}{SPLITS.index(split)}{user_id}{q}"
            records[split].append(
                LampRecord(question_id, rules.task, split, user_id, question.input, items[:size], question.gold)
            )
    return records


def make_world(config: WorldConfig) -> World:
    """Draw a world. The same configuration gives the same world on every machine."""
    rules = world_rules()
    by_split: dict[tuple[str, str], list[LampRecord]] = {}
    number = 0

    def next_user() -> str:
        nonlocal number
        number += 1
        return f"{1 + config.seed}{number - 1:06d}"

    for split, users in (("train", config.train_users), ("dev", config.dev_users)):
        records = by_split.setdefault((USER, split), [])
        for index in range(users):
            user_id = next_user()
            for task in WORLD_TASKS:
                records += _user_records(config, rules[task], split, index, user_id)
    for index in range(config.time_users):
        user_id = next_user()
        for task in WORLD_TASKS:
            for split, records in _time_records(config, rules[task], index, user_id).items():
                by_split.setdefault((TIME, split), []).extend(records)
    return World({key: tuple(records) for key, records in by_split.items()})
