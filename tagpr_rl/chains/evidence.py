"""Tests whether a chain uses its user's profile: by its words and by its answer, against another user's profile.

By words: a step *has evidence in a profile* if it has a clue, which is a word of the profile's items, or such a word
together with the label that the user gave to the item ("soap" and "4"). A clue must not be in the question, and must
not be common to most users' profiles.
By answer: the same teacher answers the same question with the other user's profile. If the chain used its profile, the
other answer should differ.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from tagpr_rl.data.tasks import TASKS
from tagpr_rl.prompts.retrieve import bm25_scores
from tagpr_rl.types import LampRecord, ProfileItem, Prompt

CANDIDATES = 8
"""Number of other users drawn for a question. The one whose profile is nearest to the question is taken (hard
pairs)."""
_WORD = re.compile(r"\w+")
FEWEST_USERS, MOST_USERS = 5, 200
"""With fewer users of a task no clue is common. With more users a sample of MOST_USERS is counted."""


@dataclass(frozen=True, slots=True)
class EvidenceRules:
    """What counts as use of the profile. Chains that were written without a profile are not tested."""

    require: Literal["off", "measure", "text", "answer", "either", "both"] = "off"
    """measure: count, but keep all. text: the words must show it. answer: the answer must change with the profile.
    either, both: one of the two tests, or both. answer, either and both ask the teacher once more per record."""
    min_share: float = 0.0
    """Least share of the steps with evidence that the other profile does not give, in [0, 1]; 0 = at least one step."""
    common: float = 0.5
    """A clue in more than this share of the task's profiles is common and no evidence. In [0, 1]."""

    @property
    def reads_words(self) -> bool:
        """Whether the words are tested."""
        return self.require != "off"

    @property
    def asks_teacher(self) -> bool:
        """Whether the answer with another profile is tested."""
        return self.require in ("answer", "either", "both")


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence of one chain."""

    own: float
    """Share of the steps with evidence in the items shown, in [0, 1]."""
    other: float | None
    """Share of the steps with evidence in the items that the other user's profile would have shown; None without
    one."""
    specific: float = 0.0
    """Share of the steps with a clue of the own items that the other's items do not have, in [0, 1]."""
    own_clues: int = 0
    """Number of different clues in the steps that only the own items have."""
    other_clues: int = 0
    """Number of different clues in the steps that only the other's items have."""
    changed: bool | None = None
    """Whether the teacher's answer differs with the other profile; None if there is no such answer."""


class ProfilePool:
    """The profiles of all users by task. Which one a record gets depends on the seed and the record alone."""

    def __init__(self, records: Sequence[LampRecord], seed: int) -> None:
        self._seed = seed
        users: dict[str, dict[str, LampRecord]] = {}
        for record in records:
            if record.profile:
                users.setdefault(record.task, {}).setdefault(record.user_id, record)
        self.by_task = {task: list(by_user.values()) for task, by_user in users.items()}
        """Task -> one record per user that has a profile."""

    def other(self, record: LampRecord, candidates: int = CANDIDATES) -> LampRecord | None:
        """Among a few random other users the one with the item nearest to the question; None if there is no other
        user."""
        pool = self.by_task.get(record.task, [])
        rng = Random(f"other/{self._seed}/{record.id}")
        drawn = rng.sample(pool, min(candidates + 1, len(pool)))
        others = [r for r in drawn if r.user_id != record.user_id][:candidates]
        if len(others) < 2:
            return others[0] if others else None
        spec = TASKS[record.task]
        query = spec.query(record)
        best = [max(bm25_scores([spec.item_text(item) for item in r.profile], query)) for r in others]
        return others[best.index(max(best))]

    def swap(self, record: LampRecord, candidates: int = CANDIDATES) -> tuple[LampRecord, str] | None:
        """(the record with the other user's profile, that user's id); None if there is no other user."""
        other = self.other(record, candidates)
        return (replace(record, profile=other.profile), other.user_id) if other is not None else None


@dataclass(frozen=True, slots=True)
class ProfileSwap:
    """How the evidence check asks the same question with another user's profile."""

    pool: ProfilePool
    shown: Callable[[LampRecord], Sequence[ProfileItem]]
    """The profile items that a prompt for the record shows."""
    make_prompt: Callable[[LampRecord], Prompt]


Clue = str | tuple[str, str]
"""A word, or (a word of an item's label, a word of its text)."""


class CommonClues:
    """The clues that most users of a task have in their profiles."""

    def __init__(self, profiles: Mapping[str, Sequence[LampRecord]], share: float) -> None:
        """`profiles`: task -> one record per user; at most MOST_USERS of them are counted."""
        self._clues = {task: _common(users, share) for task, users in profiles.items()}

    def of(self, task: str) -> frozenset[Clue]:
        """The task's common clues."""
        return self._clues.get(task, frozenset())


def words(text: str) -> frozenset[str]:
    """Distinct words, lower case."""
    return frozenset(_WORD.findall(text.lower()))


def clues(task: str, items: Iterable[ProfileItem]) -> frozenset[Clue]:
    """All clues of some profile items. Only classification and rating tasks have labels; a title counts as text."""
    spec = TASKS[task]
    key = spec.label_key if spec.kind in ("classification", "rating") else None
    every: set[Clue] = set()
    for item in items:
        text = words(" ".join(item.fields.values()))
        every |= text
        if key is not None:
            label = words(item.fields[key])
            every |= {(one, two) for one in label for two in text - label}
    return frozenset(every)


def text_evidence(
    steps: Sequence[str],
    record: LampRecord,
    own: Sequence[ProfileItem],
    other: Sequence[ProfileItem] | None,
    common: frozenset[Clue],
) -> Evidence:
    """The evidence of a chain's steps in the own items and in those of another user (None = there is none)."""
    step_words = [words(step) for step in steps]
    question = words(TASKS[record.task].query(record))  # not the whole input, since some tasks list every label there

    def share(some: frozenset[Clue]) -> tuple[float, int]:
        """(share of steps with a clue, number of different clues in the steps)."""
        hits = _hits(step_words, some, question)
        return sum(bool(hit) for hit in hits) / len(step_words), len(frozenset[Clue]().union(*hits))

    own_all, other_all = clues(record.task, own) - common, clues(record.task, other or ()) - common
    own_share, other_share = share(own_all)[0], share(other_all)[0] if other is not None else None
    specific, own_clues = share(own_all - other_all)
    return Evidence(own_share, other_share, specific, own_clues, share(other_all - own_all)[1])


def item_evidence(
    steps: Sequence[str], task: str, question: str, items: Sequence[ProfileItem], common: frozenset[Clue]
) -> list[dict[int, frozenset[str]]]:
    """For each step: index of an item -> the words of its clues in the step; an item without a clue is left out.

    `question` is the text that the user asks about, without the task's own words (`TaskSpec.query`).
    """
    step_words, asked = [words(step) for step in steps], words(question)
    by_item = [_hits(step_words, clues(task, [item]) - common, asked) for item in items]
    return [
        {
            i: frozenset(word for clue in hits[step] for word in ((clue,) if isinstance(clue, str) else clue))
            for i, hits in enumerate(by_item)
            if hits[step]
        }
        for step in range(len(step_words))
    ]


def _hits(steps: Sequence[frozenset[str]], some: frozenset[Clue], question: frozenset[str]) -> list[frozenset[Clue]]:
    """The clues in each step. Words of the question are none."""
    single = {clue for clue in some if isinstance(clue, str)} - question
    pairs = [clue for clue in some if not isinstance(clue, str) and not question.issuperset(clue)]
    return [(step & single) | {pair for pair in pairs if step.issuperset(pair)} for step in steps]


def words_show(evidence: Evidence, rules: EvidenceRules) -> bool:
    """Whether the steps have more clues of the own profile only than of the other only, in at least `min_share`
    steps."""
    return evidence.own_clues > evidence.other_clues and evidence.specific >= rules.min_share


def uses_profile(evidence: Evidence, rules: EvidenceRules) -> bool:
    """The verdict under `rules.require`. A missing answer with the other profile counts as unchanged."""
    shown, changed = words_show(evidence, rules), bool(evidence.changed)
    verdicts = {"text": shown, "answer": changed, "either": shown or changed, "both": shown and changed}
    return verdicts.get(rules.require, True)


def summary(chains: Sequence[Evidence], rules: EvidenceRules) -> dict[str, float | int | None]:
    """The block `evidence` of chains.json: counts, and means over the chains. `shown`: those that `words_show`
    accepts."""
    others = [e.other for e in chains if e.other is not None]
    compared = [e.changed for e in chains if e.changed is not None]
    return {
        "tested": len(chains),
        "shown": sum(words_show(e, rules) for e in chains),
        "own_steps": _mean([e.own for e in chains]),
        "other_steps": _mean(others),
        "specific_steps": _mean([e.specific for e in chains]),
        "answers_compared": len(compared),
        "answers_changed": _mean([float(changed) for changed in compared]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _common(users: Sequence[LampRecord], share: float) -> frozenset[Clue]:
    if len(users) < FEWEST_USERS:
        return frozenset()
    sample = Random("common").sample(list(users), min(MOST_USERS, len(users)))
    counts = Counter(clue for record in sample for clue in clues(record.task, record.profile))
    return frozenset(clue for clue, n in counts.items() if n > share * len(sample))
