"""Tests whether an answer follows from its thought: the thought or profile is altered, and the model answers again.

An altered thought keeps the prompt. With an altered profile the model either writes a new thought, which shows whether
the thought depends on the profile, or answers from its old one (`..._same_thought`):

    unchanged              nothing is altered; the answer may still change, since the text is tokenised anew
    drop_all               all steps are dropped
    drop_step              one step is dropped; once for each step, so it also shows which tags matter
    shuffle_steps          the steps in another order
    other_thought          the thought of another user's question of the same task
    profile_first_dropped  the profile without the item that stood first in the prompt
    profile_dropped        no profile
    profile_swapped        another user's profile
    profile_..._same_thought

An answer counts as *changed* if its text differs from the model's own answer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tagpr_rl.eval.metrics import task_mean
from tagpr_rl.tags.grammar import render
from tagpr_rl.tags.schema import THINK
from tagpr_rl.types import Step, TaggedTrace

OWN, FIRST_DROPPED, DROPPED, SWAPPED = "own", "first_dropped", "dropped", "swapped"
"""Which profile the prompt shows."""


@dataclass(frozen=True, slots=True)
class Alteration:
    """One alteration, from which the model answers again."""

    alteration: str
    steps: tuple[Step, ...] | None
    """The thought to answer from; None = the model writes a new one."""
    profile: str = OWN
    tag: str | None = None
    """Tag of the step that drop_step dropped."""


def alterations(steps: Sequence[Step], other: Sequence[Step] | None, *, seed: str) -> list[Alteration]:
    """Every alteration of one thought. `other`: another user's thought; None if there is none.

    A thought of one step, or of equal steps, has no shuffle_steps. `seed` fixes the order of the shuffled one.
    """
    own = tuple(steps)
    cases = [Alteration("unchanged", own), Alteration("drop_all", ())]
    cases += [Alteration("drop_step", own[:i] + own[i + 1 :], tag=step.tag) for i, step in enumerate(own)]
    if (mixed := shuffled(own, seed)) is not None:
        cases.append(Alteration("shuffle_steps", mixed))
    if other is not None:
        cases.append(Alteration("other_thought", tuple(other)))
    for kind in (FIRST_DROPPED, DROPPED, SWAPPED):
        cases.append(Alteration(f"profile_{kind}", None, profile=kind))
        cases.append(Alteration(f"profile_{kind}_same_thought", own, profile=kind))
    return cases


def shuffled(steps: tuple[Step, ...], seed: str) -> tuple[Step, ...] | None:
    """The steps in another order; None if all orders are equal."""
    if len(set(steps)) < 2:
        return None
    mixed, source = list(steps), random.Random(seed)
    while tuple(mixed) == steps:
        source.shuffle(mixed)
    return tuple(mixed)


def other_thoughts(keys: Sequence[tuple[str, str]], thoughts: Sequence[Sequence[Step]]) -> list[Sequence[Step] | None]:
    """For each (task, user) the next thought of another user of the task, in a circle; None if there is none."""
    others: list[Sequence[Step] | None] = []
    for i, (task, user) in enumerate(keys):
        after = [*range(i + 1, len(keys)), *range(i)]
        others.append(next((thoughts[j] for j in after if keys[j][0] == task and keys[j][1] != user), None))
    return others


def thought_text(steps: Sequence[Step]) -> str:
    """A response up to the start of its answer, as `render` writes it. Without steps the thought is empty."""
    if not steps:
        return f"<{THINK}>\n</{THINK}>\n"
    return render(TaggedTrace(tuple(steps), "x")).removesuffix("x")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer from one alteration, compared with the model's own answer."""

    key: str
    task: str
    user_id: str
    alteration: str
    tag: str | None
    changed: bool
    score: float
    """Task score of the new answer, [0, 1]."""
    own_score: float
    """Task score of the model's own answer."""


def aggregate(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """{"alterations": {name: figures}, "tags": {tag: figures of drop_step}}, in order of first appearance.

    Figures: n (questions), changed, score, score_change (to the model's own answer), each [mean, low, high] over
    tasks, with the 95 % interval over users. Several outcomes of one question count as their mean.
    """
    names = dict.fromkeys(outcome.alteration for outcome in outcomes)
    tags = dict.fromkeys(outcome.tag for outcome in outcomes if outcome.tag is not None)
    return {
        "alterations": {name: _figures([o for o in outcomes if o.alteration == name]) for name in names},
        "tags": {tag: _figures([o for o in outcomes if o.tag == tag]) for tag in tags},
    }


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    by_question: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_question.setdefault(outcome.key, []).append(outcome)
    groups = list(by_question.values())
    tasks, users = [group[0].task for group in groups], [group[0].user_id for group in groups]

    def interval(values: Mapping[int, float]) -> list[float]:
        return list(task_mean([values[i] for i in range(len(groups))], tasks, users))

    def mean(group: Sequence[Outcome], what: str) -> float:
        values = {
            "changed": [float(o.changed) for o in group],
            "score": [o.score for o in group],
            "score_change": [o.score - o.own_score for o in group],
        }[what]
        return sum(values) / len(values)

    figures = {
        what: interval({i: mean(group, what) for i, group in enumerate(groups)})
        for what in ("changed", "score", "score_change")
    }
    return {"n": len(groups), **figures}
