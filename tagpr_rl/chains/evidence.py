"""Does a chain use this user's profile? Its words and its answer, compared with another user's profile (ours).

The check on the words: a step *has evidence in a profile* when it holds a word of the items shown, or a word together
with the label that the user gave to its item ("4" and "soap"), that is not in the question and not common to most
users' profiles. The answer: the same teacher is asked the same question with the
other user's profile, and a chain that used the profile has reason to answer otherwise.
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
from tagpr_rl.types import LampRecord, ProfileItem, Prompt, TagprError

CANDIDATES = 8
"""Number of other users drawn for a question. The one whose profile is nearest to the question is taken (hard
pairs)."""
_WORD = re.compile(r"\w+")
FEWEST_USERS, MOST_USERS = 5, 200
"""With fewer users of a task nothing is called common to most of them; of more a sample is looked at."""


@dataclass(frozen=True, slots=True)
class EvidenceRules:
    """What counts as use of the profile. Chains that were asked without a profile are never tested."""

    require: Literal["off", "measure", "text", "answer", "either", "both"] = "off"
    """measure = count and keep all; text = the words must show it; answer = the answer must change with the profile;
    either = one of the two; both. All but off, measure and text ask the teacher once more per record."""
    min_share: float = 0.0
    """Least share of steps with evidence that the other profile does not give, [0, 1]; 0 = one step at least."""
    common: float = 0.5
    """A word in more than this share of the task's profiles is no evidence, [0, 1]."""

    def __post_init__(self) -> None:
        """Refuse shares outside their range (TagprError)."""
        for name in ("min_share", "common"):
            if not 0 <= getattr(self, name) <= 1:
                raise TagprError(f"keep.evidence.{name} is {getattr(self, name)!r}: use [0, 1]")

    @property
    def reads_words(self) -> bool:
        """Whether words are looked at."""
        return self.require != "off"

    @property
    def asks_teacher(self) -> bool:
        """Whether the answer under another profile is needed."""
        return self.require in ("answer", "either", "both")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found for one chain."""

    own: float
    """Share of steps with evidence in the items shown, [0, 1]."""
    other: float | None
    """The same steps against the items that the other user's profile would have shown; None without another user."""
    specific: float = 0.0
    """Share of steps with evidence in the own items that the other's items do not give, [0, 1]."""
    own_clues: int = 0
    """Different clues said that only the own items give."""
    other_clues: int = 0
    """Different clues said that only the other's items give."""
    changed: bool | None = None
    """Whether the teacher's answer was another one with the other profile; None when not asked or not answered."""


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
    """What most users of a task have in their profiles."""

    def __init__(self, profiles: Mapping[str, Sequence[LampRecord]], share: float) -> None:
        """`profiles`: task -> one record per user; MOST_USERS of them are looked at."""
        self._clues = {task: _common(users, share) for task, users in profiles.items()}

    def of(self, task: str) -> frozenset[Clue]:
        """The task's common clues."""
        return self._clues.get(task, frozenset())


def words(text: str) -> frozenset[str]:
    """Distinct words, lower case."""
    return frozenset(_WORD.findall(text.lower()))


def clues(task: str, items: Iterable[ProfileItem]) -> frozenset[Clue]:
    """Every clue of some profile items. Labels are those of classification and rating; a title is text."""
    spec = TASKS[task]
    key = spec.label_key if spec.kind in ("classification", "rating") else None
    found: set[Clue] = set()
    for item in items:
        text = words(" ".join(item.fields.values()))
        found |= text
        if key is not None:
            label = words(item.fields[key])
            found |= {(one, two) for one in label for two in text - label}
    return frozenset(found)


def text_evidence(
    steps: Sequence[str],
    record: LampRecord,
    own: Sequence[ProfileItem],
    other: Sequence[ProfileItem] | None,
    common: frozenset[Clue],
) -> Evidence:
    """Share of steps with evidence in the own items and in the other user's (None: there is no other user)."""
    said = [words(step) for step in steps]
    asked = words(TASKS[record.task].query(record))  # not the whole input: some tasks list every label there

    def share(found: frozenset[Clue]) -> tuple[float, int]:
        """(share of steps with some of the clues, how many different clues were said)."""
        single = {clue for clue in found if isinstance(clue, str)} - asked
        pairs = [clue for clue in found if not isinstance(clue, str) and not asked.issuperset(clue)]
        hits = [(step & single) | {pair for pair in pairs if step.issuperset(pair)} for step in said]
        return sum(bool(hit) for hit in hits) / len(said), len(frozenset[Clue]().union(*hits))

    mine = clues(record.task, own) - common
    theirs = clues(record.task, other or ()) - common
    specific, own_clues = share(mine - theirs)
    return Evidence(
        share(mine)[0], share(theirs)[0] if other is not None else None, specific, own_clues, share(theirs - mine)[1]
    )


def words_show(found: Evidence, rules: EvidenceRules) -> bool:
    """Whether some step, and as many as `min_share` asks for, has evidence that the other profile does not give, and
    more such evidence was said than evidence that only the other gives."""
    return found.own_clues > found.other_clues and found.specific >= rules.min_share


def uses_profile(found: Evidence, rules: EvidenceRules) -> bool:
    """The verdict under `rules.require`. An answer under the other profile that did not come proves nothing."""
    said = words_show(found, rules)
    changed = bool(found.changed)
    verdicts = {"text": said, "answer": changed, "either": said or changed, "both": said and changed}
    return verdicts.get(rules.require, True)


def summary(found: Sequence[Evidence], rules: EvidenceRules) -> dict[str, float | int | None]:
    """Figures for chains.json; means over the chains tested. `shown`: chains that `words_show` accepts."""
    others = [e.other for e in found if e.other is not None]
    asked = [e.changed for e in found if e.changed is not None]
    return {
        "tested": len(found),
        "shown": sum(words_show(e, rules) for e in found),
        "own_steps": _mean([e.own for e in found]),
        "other_steps": _mean(others),
        "specific_steps": _mean([e.specific for e in found]),
        "answers_compared": len(asked),
        "answers_changed": _mean([float(changed) for changed in asked]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _common(users: Sequence[LampRecord], share: float) -> frozenset[Clue]:
    if len(users) < FEWEST_USERS:
        return frozenset()
    looked = Random("common").sample(list(users), min(MOST_USERS, len(users)))
    seen = Counter(clue for record in looked for clue in clues(record.task, record.profile))
    return frozenset(clue for clue, n in seen.items() if n > share * len(looked))
