"""Evaluation of responses, controls and baselines on records small enough to check by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_rl.data.check import leaks_gold
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.eval.controls import baselines, empty_profiles, shuffle_profiles
from tagpr_rl.eval.lamp_eval import evaluate, question_key
from tagpr_rl.eval.metrics import paired_difference
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import LampRecord, ParseStatus, ProfileItem, TagprError

SCHEMA = default_schema()


def thought(answer: str) -> str:
    return f"<think><conclude>so</conclude></think> {answer}"


def question(task: str, key: str, user: str, gold: str | None, *items: dict[str, str]) -> LampRecord:
    blanks = {"title": "t", "first": "cat", "second": "dog"} if task == "LaMP_1" else {"text": f"film {key}"}
    profile = tuple(ProfileItem(f"{key}-{n}", fields) for n, fields in enumerate(items))
    return LampRecord(key, task, "dev", user, TASKS[task].make_input(**blanks), profile, gold)


RECORDS = [
    question("LaMP_2", "1", "a", "comedy"),
    question("LaMP_2", "2", "b", "comedy"),
    question("LaMP_2", "3", "b", "action"),
    question("LaMP_3", "4", "a", "5"),
]
RESPONSES = {
    "1": thought("comedy"),  # right, well formed
    "2": "comedy",  # right, no thought
    "3": "<think><conclude>it is action",  # cut short
    "4": thought("3"),  # 1 - 2/4
}


def test_evaluation_by_hand() -> None:
    result = evaluate(RECORDS, RESPONSES, SCHEMA)
    assert [q.score for q in result.questions] == [1.0, 1.0, 0.0, 0.5]
    assert result.task_scores == {"LaMP_2": pytest.approx(2 / 3), "LaMP_3": 0.5}
    assert result.score == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result.strict_score == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert result.user_macro_score == pytest.approx((0.75 + 0.5) / 2)
    assert result.score_low <= result.score <= result.score_high
    assert result.strict_rate == 0.5
    assert set(result.parse_counts) == {status.value for status in ParseStatus}
    assert {name: n for name, n in result.parse_counts.items() if n} == {
        "OK": 2,
        "NO_THOUGHT": 1,
        "TRUNCATED": 1,
    }
    assert (result.n, result.n_users, result.n_unparsable) == (4, 2, 1)
    values = {(m.task, m.name): m.value for m in result.metrics}
    assert values == {
        ("LaMP_2", "accuracy"): pytest.approx(2 / 3),
        ("LaMP_2", "f1"): pytest.approx(1 / 15),
        ("LaMP_3", "MAE"): 2.0,
        ("LaMP_3", "RMSE"): 2.0,
    }
    assert result.questions[2].answer == ""  # the thought never ended
    assert result.answers("LaMP_3") == {"4": "3"}


def test_truncated_counts_cut_responses_and_unfinished_thoughts_once() -> None:
    """Of four responses "3" ends inside its thought. The token limit cut "3", too, and the answer of "4"."""
    assert evaluate(RECORDS, RESPONSES, SCHEMA).truncated == 1 / 4
    result = evaluate(RECORDS, RESPONSES, SCHEMA, cut={"LaMP_2/3", "LaMP_3/4"})
    assert result.truncated == 2 / 4
    assert [question.truncated for question in result.questions] == [False, False, True, True]
    assert result.questions[3].score == 0.5  # an answer that stands is scored
    plain = {**RESPONSES, "2": "<think>They like comedies, so"}  # another model's thought, which is no tagged one
    assert evaluate(RECORDS, plain, SCHEMA).truncated == 2 / 4
    inside = dict.fromkeys(RESPONSES, "so it is</think> comedy") | {"1": "so it is"}
    assert evaluate(RECORDS, inside, SCHEMA, prefilled=True).truncated == 1 / 4
    assert evaluate(RECORDS, RESPONSES, SCHEMA, thoughts=False).truncated == 0  # a file of answers has no thoughts


def test_the_result_is_json_and_feeds_the_comparison() -> None:
    result = evaluate(RECORDS, RESPONSES, SCHEMA)
    data = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert data["questions"][0]["key"] == "LaMP_2/1"
    assert data["metrics"][0]["name"] == "accuracy"
    perfect = evaluate(RECORDS, {record.id: thought(str(record.gold)) for record in RECORDS}, SCHEMA)
    assert perfect.score == perfect.strict_score == perfect.strict_rate == 1.0
    mean, _, _ = paired_difference(perfect.scores(), result.scores(), result.users(), tasks=result.tasks())
    assert mean == pytest.approx(perfect.score - result.score)


def test_a_prefilled_thought_parses_only_when_said_so() -> None:
    response = {RECORDS[0].id: thought("comedy").removeprefix("<think>")}
    assert evaluate(RECORDS[:1], response, SCHEMA, prefilled=True).strict_rate == 1.0
    assert evaluate(RECORDS[:1], response, SCHEMA).strict_rate == 0.0


def test_ids_that_repeat_across_tasks_need_the_full_key() -> None:
    records = [RECORDS[0], replace(RECORDS[3], id="1")]
    full = {"LaMP_2/1": "comedy", "LaMP_3/1": "5"}
    assert evaluate(records, full, SCHEMA).score == 1.0
    with pytest.raises(TagprError, match="id '1' is in several tasks; key the responses like 'LaMP_2/1'"):
        evaluate(records, {"1": "comedy"}, SCHEMA)


def test_responses_and_records_must_match() -> None:
    with pytest.raises(TagprError, match="1 of 4 questions have no response, first 'LaMP_3/4'"):
        evaluate(RECORDS, {key: text for key, text in RESPONSES.items() if key != "4"}, SCHEMA)
    with pytest.raises(TagprError, match="1 responses belong to no record, first '9'"):
        evaluate(RECORDS, {**RESPONSES, "9": ""}, SCHEMA)
    with pytest.raises(TagprError, match="LaMP_2/1 has no gold"):
        evaluate([replace(RECORDS[0], gold=None)], RESPONSES, SCHEMA)
    with pytest.raises(TagprError, match="record 'LaMP_2/1' occurs twice"):
        evaluate([RECORDS[0], RECORDS[0]], RESPONSES, SCHEMA)
    with pytest.raises(TagprError, match="no records"):
        evaluate([], {}, SCHEMA)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=20), st.integers(0, 5))
def test_shuffled_profiles_are_anothers(users: list[str], seed: int) -> None:
    records = [
        question(task, str(n), user, "x", {"text": f"{task}/{user}/{n}", "title": "t"})
        for task in ("LaMP_4", "LaMP_6")
        for n, user in enumerate(users)
    ]
    if len(set(users)) == 1:
        with pytest.raises(TagprError, match="LaMP_4 has one user only"):
            shuffle_profiles(records, seed)
        return
    shuffled = shuffle_profiles(records, seed)
    assert shuffled == shuffle_profiles(records, seed)
    donors: dict[tuple[str, str], str] = {}
    for before, after in zip(records, shuffled, strict=True):
        task, donor, _ = after.profile[0].fields["text"].split("/")
        assert task == before.task
        assert donor != before.user_id
        assert donors.setdefault((task, before.user_id), donor) == donor  # one donor a user
        assert replace(after, profile=before.profile) == before
    for task in ("LaMP_4", "LaMP_6"):  # every user gives once
        assert sorted(d for (t, _), d in donors.items() if t == task) == sorted(set(users))


def test_empty_profiles() -> None:
    full = question("LaMP_4", "1", "a", "x", {"text": "t", "title": "t"})
    assert empty_profiles([full]) == [replace(full, profile=())]


def test_baselines() -> None:
    train = [question("LaMP_2", str(n), "t", gold) for n, gold in enumerate(["action", "comedy", "comedy"])]
    train += [question("LaMP_1", "8", "t", "[2]"), question("LaMP_4", "9", "t", "One headline")]
    films = (
        {"tag": "classic", "description": "a boat"},
        {"tag": "violence", "description": "a film 5"},
        {"tag": "dystopia", "description": "a train"},
    )
    papers = tuple({"title": title, "abstract": "of it"} for title in ("birds", "the dog", "fish"))
    evaluated = [
        question("LaMP_2", "5", "u", "action", *films),
        question("LaMP_2", "6", "v", "action"),
        question("LaMP_1", "7", "u", "[1]", *papers),
        question("LaMP_4", "7", "u", "Gold"),
    ]
    answers = baselines(train, evaluated)
    assert answers["majority"] == {
        "LaMP_2/5": "comedy",
        "LaMP_2/6": "comedy",
        "LaMP_1/7": "[2]",
        "LaMP_4/7": "One headline",
    }
    assert answers["nearest"] == {**answers["majority"], "LaMP_2/5": "violence", "LaMP_1/7": "[2]"}
    assert answers["random"]["LaMP_2/5"] in TASKS["LaMP_2"].labels
    assert {baselines(train, evaluated, seed)["random"]["LaMP_1/7"] for seed in range(30)} == {"[1]", "[2]"}
    assert evaluate(evaluated, answers["nearest"], SCHEMA).n == 4
    with pytest.raises(TagprError, match="no training gold for LaMP_4"):
        baselines(train[:3], evaluated[3:])


def test_the_nearest_candidate_of_a_citation_can_be_either() -> None:
    for word, label in (("cat", "[1]"), ("dog", "[2]")):
        papers = tuple({"title": title, "abstract": "of it"} for title in ("birds", f"the {word}", "fish"))
        record = question("LaMP_1", "7", "u", "[1]", *papers)
        answers = baselines([question("LaMP_1", "8", "t", "[1]")], [record])
        assert answers["nearest"] == {question_key(record): label}


def test_leaks() -> None:
    leaky = question("LaMP_4", "1", "a", "The Gold", {"title": " The Gold", "text": "x"})
    clear = question("LaMP_4", "2", "a", "The Gold", {"title": "The gold", "text": "The Gold"})
    label = question("LaMP_2", "3", "a", "comedy", {"tag": "comedy", "description": "x"})
    assert [leaks_gold(record) for record in (leaky, clear, label)] == [True, False, False]
