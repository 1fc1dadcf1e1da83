"""Controls for a score: other users' profiles, no profiles, and answers that need no model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tagpr_rl.data.people import tasks_of_one_user
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.eval.lamp_eval import question_key
from tagpr_rl.prompts.retrieve import bm25_scores, rank
from tagpr_rl.types import LampRecord, TagprError


def empty_profiles(records: Sequence[LampRecord]) -> list[LampRecord]:
    """The same questions with empty profiles."""
    return [replace(record, profile=()) for record in records]


def shuffle_profiles(records: Sequence[LampRecord], seed: int) -> list[LampRecord]:
    """The same questions, each with the profile of another user of the same task.

    The users of a task form a random circle, and each gets the profile of the next one. So nobody keeps the own profile
    and every profile is used. Only `profile` changes, not `user_id`. TagprError if a task has a single user.
    """
    if lonely := tasks_of_one_user(records):
        raise TagprError(f"shuffled profiles: {lonely[0]} has one user only; use a split with two users or more")
    donors: dict[tuple[str, str], list[LampRecord]] = {}
    for task in dict.fromkeys(record.task for record in records):
        by_user: dict[str, list[LampRecord]] = {}
        for record in records:
            if record.task == task:
                by_user.setdefault(record.user_id, []).append(record)
        circle = sorted(by_user)
        random.Random(f"{seed}/{task}").shuffle(circle)
        for position, user in enumerate(circle):
            donors[task, user] = by_user[circle[(position + 1) % len(circle)]]
    position_of: Counter[tuple[str, str]] = Counter()
    shuffled = []
    for record in records:
        own = (record.task, record.user_id)
        donor = donors[own][position_of[own] % len(donors[own])]
        position_of[own] += 1
        shuffled.append(replace(record, profile=donor.profile))
    return shuffled


BASELINES = ("constant", "majority", "random", "nearest")


def baseline_answers(
    name: str,
    records: Sequence[LampRecord],
    golds: Mapping[str, Sequence[str]],
    *,
    constant: str | None = None,
    seed: int = 0,
) -> dict[str, str]:
    """The answers of one baseline: question key -> text.

    Args:
        name: "constant" gives the text `constant` to every question; see `baselines` for the others.
        golds: task -> training golds. All baselines but "constant" need some for each task.

    TagprError for an unknown name, and for golds that are needed and missing.
    """
    if name not in BASELINES:
        raise TagprError(f"baseline {name!r} is not one of {', '.join(BASELINES)}")
    if name == "constant":
        if constant is None:
            raise TagprError("the constant baseline needs its answer (--constant TEXT)")
        return {question_key(record): constant for record in records}
    answers = {}
    majorities = {task: Counter(own).most_common(1)[0][0] for task, own in golds.items() if own}
    for record in records:
        if record.task not in majorities:
            raise TagprError(f"baseline {name}: no training gold for {record.task}; give a file with some")
        key = question_key(record)
        if name == "majority":
            answers[key] = majorities[record.task]
        elif name == "random":
            choices = TASKS[record.task].labels or tuple(golds[record.task])
            answers[key] = random.Random(f"{seed}/{key}").choice(choices)
        else:
            answers[key] = _nearest(record, majorities[record.task])
    return answers


def baselines(
    records_train: Sequence[LampRecord], records_eval: Sequence[LampRecord], seed: int = 0
) -> dict[str, dict[str, str]]:
    """Answers that need no model: baseline -> {question key: answer}, as `evaluate` takes them.

    majority: the most frequent training gold of the task (of equal ones the first in training order).
    random: a uniform label; for generation the gold of a random training question.
    nearest: the label that the user gave to the profile item that BM25 ranks first. For generation its title or text,
    for LaMP_1 the candidate that matches the profile better, and for an empty profile the majority answer.

    TagprError if a task has no training golds.
    """
    golds: dict[str, list[str]] = {}
    for record in records_train:
        if record.gold is not None:
            golds.setdefault(record.task, []).append(record.gold)
    for record in records_eval:
        if record.task not in golds:
            raise TagprError(f"baselines: no training gold for {record.task}; add its train split or split by user")
    return {name: baseline_answers(name, records_eval, golds, seed=seed) for name in ("majority", "random", "nearest")}


def _nearest(record: LampRecord, default: str) -> str:
    spec = TASKS[record.task]
    if not record.profile:
        return default
    if spec.label_key is not None:
        return rank(record, 1, "bm25")[0].fields[spec.label_key]
    quoted = record.input.split('"')[1::2]
    spec.query(record)  # raises if the question does not name its candidates
    texts = [spec.item_text(item) for item in record.profile]
    first, second = (max(bm25_scores(texts, candidate)) for candidate in quoted[1:3])
    return spec.labels[0] if first >= second else spec.labels[1]
