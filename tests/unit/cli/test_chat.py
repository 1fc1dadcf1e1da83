"""`tagpr chat`: which user and stage, what a line asks, and what is shown of the answer."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tagpr_rl.cli.chat import asked, introduce, question_of, talk, trained_stage
from tagpr_rl.config import recipe_from_dict
from tagpr_rl.report.page.terminal import Page
from tagpr_rl.run.layout import RunDir
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import LampRecord, ProfileItem, Prompt, TagprError

HEAD = "Which category does this article relate to among the following categories? Just answer with the category name."
ITEM = ProfileItem("1", {"text": "Cup final", "category": "sports"})
OWN = LampRecord("7", "LaMP_2N", "dev", "ann", f"{HEAD} article: Old text", (ITEM,), "politics")


def test_the_user_and_the_task_that_were_asked_for() -> None:
    other = replace(OWN, id="8", user_id="bob", task="LaMP_4")
    records = (OWN, other, replace(other, id="9", task="LaMP_3"))
    assert question_of(records, None, None) is OWN and question_of(records, "bob", None) is other
    assert question_of(records, "bob", "LaMP_3").id == "9" and question_of(records, None, "LaMP_3").id == "9"
    with pytest.raises(TagprError, match="no such user; there are ann, bob"):
        question_of(records, "eve", None)
    with pytest.raises(TagprError, match="this user has questions of LaMP_2N"):
        question_of(records, "ann", "LaMP_4")


def test_a_line_is_the_own_question_a_whole_one_or_a_new_text() -> None:
    assert asked(OWN, " ") is OWN
    whole = asked(OWN, "Which category? article: New text")
    assert (whole.input, whole.gold) == ("Which category? article: New text", None)
    assert asked(OWN, "New text").input == f"{HEAD} article: New text"


def test_a_task_of_two_texts_wants_the_whole_question() -> None:
    text = 'For an author who has written the paper with the title "a", which reference is related? [1]: "b" [2]: "c"'
    base = replace(OWN, task="LaMP_1", input=text)
    with pytest.raises(TagprError, match="type the whole question as LaMP_1 has it"):
        asked(base, "cells")
    assert asked(base, text.replace("b", "d")).input == text.replace("b", "d")


def test_thought_answer_and_gold_are_shown() -> None:
    file = io.StringIO()
    page = Page(Console(file=file, width=100), default_schema())
    introduce(page, OWN, "explore")
    prompts: list[Prompt] = []

    def make(record: LampRecord) -> Prompt:
        prompts.append(
            Prompt(
                record.id, record.task, record.user_id, ({"role": "user", "content": record.input},), (), 0, False, 1
            )
        )
        return prompts[-1]

    def answer(prompt: Prompt) -> str:
        return f"<think><examine_examples>{len(prompts)} seen</examine_examples></think>politics"

    talk(page, OWN, make, answer, iter(["", "New text"]))
    text = file.getvalue()
    assert "answers as user ann would want" in text and "1 of 1 items" in text and "Cup final" in text
    assert [prompt.messages[0]["content"] for prompt in prompts] == [OWN.input, f"{HEAD} article: New text"]
    assert text.count("the user's own answer: politics") == 1 and text.count("thought and answer") == 2
    assert "1 seen" in text and "2 seen" in text


def test_the_last_finished_trained_stage_answers(tmp_path: Path) -> None:
    stages = {
        "data": {"kind": "data"}, "model": {"kind": "model"}, "prompts": {"kind": "prompts"},
        "chains": {"kind": "chains"}, "sft": {"kind": "sft", "init": "model"},
        "guided": {"kind": "grpo", "init": "sft", "weights": {"beta": 0}},
    }  # fmt: skip
    recipe, run = recipe_from_dict({"name": "r", "stages": stages}, source="test"), RunDir(tmp_path / "r")
    with pytest.raises(TagprError, match="no sft or grpo stage is finished"):
        trained_stage(recipe, run, None)
    with pytest.raises(TagprError, match="no such stage"):
        trained_stage(recipe, run, "guidde")
    with pytest.raises(TagprError, match="--stage sft: no finished sft or grpo stage"):
        trained_stage(recipe, run, "sft")
