"""The grounded teacher: every statement is a fact, the gold is told in hindsight for the user's own profile alone."""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random

import pytest

from tagpr_rl.chains.labellers.label import ScriptedLabeller
from tagpr_rl.chains.teachers.grounded import GroundedTeacher, shared_cues, taken_words, usual_form
from tagpr_rl.chains.teachers.interface import TeacherRequest
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.tags.constraints import violations
from tagpr_rl.tags.grammar import parse, render
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import LampRecord, ProfileItem, Prompt, Step, TaggedTrace

SCHEMA = default_schema()
WORDS = ("vote", "check", "senate", "however", "police", "Rather", "a", "the", "compare", "option", "title", "so")
"""Cue words of other tags among them."""


def request(record: LampRecord, shown: int = 4, **other: object) -> TeacherRequest:
    ids = tuple(item.id for item in record.profile[:shown])
    return TeacherRequest(record, Prompt(record.id, record.task, "u", (), ids, 0, False, 1), **other)  # type: ignore[arg-type]


def news(gold: str | None = "crime") -> LampRecord:
    rows = (
        ("Police arrest a man", "crime"),
        ("Police find a body", "crime"),
        ("A vote in the senate", "politics"),
        ("The senate waits", "politics"),
        ("The senate rests", "politics"),
    )
    items = tuple(ProfileItem(str(i), {"title": "", "text": t, "category": c}) for i, (t, c) in enumerate(rows))
    text = TASKS["LaMP_2N"].make_input(text="Police search a senate office")
    return LampRecord("q", "LaMP_2N", "train", "u", text, items, gold)


def lines(record: LampRecord, **other: object) -> list[str]:
    (reply,) = GroundedTeacher().generate([request(record, **other)])  # type: ignore[arg-type]
    return reply.text.splitlines()


def test_a_label_follows_from_counts_and_shared_words() -> None:
    near, counts, lead, answer = lines(news())
    assert near.endswith("crime 2, politics 2")
    assert re.fullmatch(r"user (prefers|likes|favours) politics 3, crime 2 of 5", counts)
    assert re.fullmatch(r'so ("police"(: crime| point to crime)|crime, by "police")', lead)
    assert answer == "Answer: crime"


def test_shared_cues_are_those_that_items_of_the_label_have_more_often() -> None:
    record = news()
    history = [item.fields for item in record.profile]
    assert shared_cues(TASKS["LaMP_2N"], record, history, "crime") == ("police",)
    assert shared_cues(TASKS["LaMP_2N"], record, history, "politics") == ("senate",)
    assert shared_cues(TASKS["LaMP_2N"], record, history, "travel") == ()


def test_with_a_foreign_profile_the_gold_plays_no_part() -> None:
    texts = {lines(news(gold), foreign=True)[-1] for gold in ("travel", "religion", None)}
    assert texts == {"Answer: politics"}  # of the nearest item: 2 of 6 words, against 2 of 7


def test_without_items_nothing_is_said_of_the_history() -> None:
    record = replace(news(), profile=())
    first, second, lead, answer = lines(record)
    assert "item" in first and "preference" in second and answer == "Answer: crime"
    assert "police, search" in lead


def test_the_form_of_titles() -> None:
    assert usual_form(["Why We Wait: A Story", "Run: A Race", "Sit"]) == "3 words, Title Case, with :"
    assert usual_form(["why we wait", "they run off now", "sit"]) == "3 words, sentence case"


def test_a_plan_has_only_words_that_stand_in_the_sources() -> None:
    assert taken_words("Police Search The Moon's Office", ["police search", "moon's"]) == ("Police", "Search", "Moon's")
    assert taken_words("Nothing Known", ["a text"]) == ()


def made_record(task: str, rng: Random) -> LampRecord:
    spec = TASKS[task]

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=7))

    def item(n: int) -> ProfileItem:
        fields = {key: text() for key in spec.item_keys}
        if spec.labels and spec.label_key:
            fields[spec.label_key] = rng.choice(spec.labels)
        return ProfileItem(str(n), fields)

    blanks = {"title": text(), "first": text(), "second": text()} if task == "LaMP_1" else {"text": text()}
    gold = rng.choice(spec.labels) if spec.labels else text()
    profile = tuple(item(n) for n in range(rng.randint(0, 6)))
    return LampRecord("q", task, "train", "u", spec.make_input(**blanks), profile, gold)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_chain_is_labelled_as_meant_obeys_the_schema_and_is_short(task: str) -> None:
    rng, labeller = Random(task), ScriptedLabeller()
    wordings = set()
    for sample in range(200):
        record = made_record(task, rng)
        (reply,) = GroundedTeacher().generate([request(record, sample=sample, foreign=bool(sample % 3 == 2))])
        *steps, answer = reply.text.splitlines()
        tags = [labeller.tag(step) for step in steps]
        assert tags == ["examine_examples", "infer_preference", "apply_preference"], steps
        trace = TaggedTrace(tuple(map(Step, tags, steps)), answer.removeprefix("Answer: "))
        assert not violations(trace, SCHEMA)
        assert parse(render(trace), SCHEMA).trace == trace
        assert sum(len(step.split()) for step in steps) <= 40
        wordings.add(steps[0].split()[0] + steps[1].split()[1])
        if sample % 3 != 2:
            assert answer == f"Answer: {record.gold}"
    assert len(wordings) >= 4
