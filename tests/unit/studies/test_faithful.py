"""Faithfulness: the alterations of a thought, and how their outcomes are counted, by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import finish_all, recipe
from rich.console import Console

from tagpr_rl.cli import main, study
from tagpr_rl.eval.alteration import (
    Outcome,
    aggregate,
    alterations,
    other_thoughts,
    shuffled,
    thought_text,
)
from tagpr_rl.files import write_json
from tagpr_rl.run.layout import RunDir
from tagpr_rl.studies.faithful import reasoning_stage
from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import Step, TagprError

A, B, C = Step("examine_examples", "a"), Step("infer_preference", "b"), Step("conclude", "c")


def test_every_alteration_of_a_thought_of_three_steps() -> None:
    actual = alterations([A, B, C], [B], seed="s")
    (mixed,) = (item for item in actual if item.alteration == "shuffle_steps")
    actual.remove(mixed)
    assert [(item.alteration, item.steps, item.profile, item.tag) for item in actual] == [
        ("unchanged", (A, B, C), "own", None),
        ("drop_all", (), "own", None),
        ("drop_step", (B, C), "own", "examine_examples"),
        ("drop_step", (A, C), "own", "infer_preference"),
        ("drop_step", (A, B), "own", "conclude"),
        ("other_thought", (B,), "own", None),
        ("profile_first_dropped", None, "first_dropped", None),
        ("profile_first_dropped_same_thought", (A, B, C), "first_dropped", None),
        ("profile_dropped", None, "dropped", None),
        ("profile_dropped_same_thought", (A, B, C), "dropped", None),
        ("profile_swapped", None, "swapped", None),
        ("profile_swapped_same_thought", (A, B, C), "swapped", None),
    ]
    assert mixed.steps not in (None, (A, B, C)) and set(mixed.steps) == {A, B, C}


def test_one_step_or_equal_steps_cannot_be_shuffled_and_nobody_else_lends_no_thought() -> None:
    assert shuffled((A,), "s") is None and shuffled((A, A), "s") is None
    assert shuffled((A, B), "s") == (B, A)
    names = [item.alteration for item in alterations([A], None, seed="s")]
    assert names[:3] == ["unchanged", "drop_all", "drop_step"] and len(names) == 9


@given(st.lists(st.sampled_from([A, B, C]), min_size=2, max_size=6), st.text(max_size=5))
def test_a_shuffle_keeps_the_steps_and_is_the_same_every_time(steps: list[Step], seed: str) -> None:
    actual = shuffled(tuple(steps), seed)
    assert actual == shuffled(tuple(steps), seed)
    if actual is None:
        assert len(set(steps)) == 1
    else:
        assert actual != tuple(steps) and sorted(map(str, actual)) == sorted(map(str, steps))


def test_thoughts_come_from_another_user_of_the_same_task() -> None:
    keys = [("LaMP_1", "u"), ("LaMP_1", "u"), ("LaMP_2", "v"), ("LaMP_1", "w")]
    thoughts: list[Sequence[Step]] = [[A], [B], [C], [A, B]]
    assert other_thoughts(keys, thoughts) == [[A, B], [A, B], None, [A]]


@pytest.mark.parametrize("steps", [(A,), (A, B, C), ()])
def test_the_beginning_of_a_response_and_an_answer_are_a_response(steps: tuple[Step, ...]) -> None:
    text = thought_text(steps)
    assert text.endswith("</think>\n") and text.startswith("<think>")
    parsed = parse(text + "[1]", default_schema())
    if steps:
        assert parsed.trace is not None and parsed.trace.steps == steps and parsed.trace.answer == "[1]"
    else:
        assert parsed.status == "NO_STEPS"


def outcome(key: str, alteration: str, changed: bool, score: float, own: float, tag: str | None = None) -> Outcome:
    task, user = {"a": ("LaMP_1", "u"), "b": ("LaMP_1", "v"), "c": ("LaMP_2", "u")}[key]
    return Outcome(key, task, user, alteration, tag, changed, score, own)


def test_figures_by_hand() -> None:
    actual = aggregate(
        [
            outcome("a", "unchanged", False, 1.0, 1.0),
            outcome("b", "unchanged", False, 0.0, 0.0),
            outcome("c", "unchanged", False, 0.5, 0.5),
            # Question a: two of its steps dropped, one of the two changed the answer: .5 changed, score .5.
            outcome("a", "drop_step", True, 0.0, 1.0, "conclude"),
            outcome("a", "drop_step", False, 1.0, 1.0, "infer_preference"),
            outcome("b", "drop_step", True, 1.0, 0.0, "conclude"),
            outcome("c", "drop_step", True, 0.5, 0.5, "conclude"),
        ]
    )
    plain, dropped = actual["alterations"]["unchanged"], actual["alterations"]["drop_step"]
    assert plain["n"] == 3 and plain["changed"] == [0.0, 0.0, 0.0] and plain["score_change"] == [0.0, 0.0, 0.0]
    assert plain["score"][0] == 0.5  # LaMP_1 .5, LaMP_2 .5
    assert dropped["n"] == 3
    assert dropped["changed"][0] == (0.75 + 1.0) / 2  # LaMP_1: a .5, b 1; LaMP_2: 1
    assert dropped["score"][0] == (0.75 + 0.5) / 2  # LaMP_1: a .5, b 1; LaMP_2: .5
    assert dropped["score_change"][0] == (0.25 + 0.0) / 2  # LaMP_1: a -.5, b +1; LaMP_2: 0
    assert dropped["changed"][1] <= dropped["changed"][0] <= dropped["changed"][2]
    assert list(actual["tags"]) == ["conclude", "infer_preference"]
    conclude = actual["tags"]["conclude"]
    assert conclude["n"] == 3 and conclude["changed"][0] == 1.0
    assert conclude["score_change"][0] == 0.0  # LaMP_1: -1 and +1; LaMP_2: 0
    assert actual["tags"]["infer_preference"]["n"] == 1


def test_the_table_shows_every_alteration_and_tag() -> None:
    actual = aggregate([outcome("a", "drop_step", True, 0.0, 1.0, "conclude")])
    facts = {"run": "r", "stage": "s", "well_formed": 1, "questions": 2, "own_score": [1.0, 1.0, 1.0], **actual}
    console = Console(width=160, file=io.StringIO())
    console.print(study.faithful_table(facts))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "drop_step: conclude" in text and "100.0% [100.0%, 100.0%]" in text and "-1.000" in text


def test_the_last_finished_stage_that_reasons_is_taken(tmp_path: Path) -> None:
    made, run = recipe(), RunDir(tmp_path / "r")
    with pytest.raises(TagprError, match="is not finished"):
        reasoning_stage(made, run, None)
    finish_all(made, run)
    assert reasoning_stage(made, run, None) == "explore" and reasoning_stage(made, run, "sft") == "sft"
    with pytest.raises(TagprError, match="no stage that answers with a thought; those are sft, guided, explore"):
        reasoning_stage(made, run, "base")


@pytest.mark.parametrize(
    "arguments, part", [((), "is no run's folder"), (("--questions", "1"), "should be greater than or equal to 2")]
)
def test_bad_input_is_one_clear_error(
    tmp_path: Path, arguments: tuple[str, ...], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments:
        write_json(RunDir(tmp_path).resolved, json.loads(recipe().model_dump_json()))
    assert main(["faithful", str(tmp_path), *arguments]) == 2
    assert part in capsys.readouterr().err
