"""The SFT stage's examples: the arm on direct answers has the questions of the chains, as often, and their golds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tagpr_rl.config import Recipe, answers_directly, load_recipe, prompt_style, recipe_from_dict, upstream
from tagpr_rl.prompts.prompt import DIRECT_INSTRUCTION, direct_messages, reasoning_instruction
from tagpr_rl.stages.sft import answer_examples, chain_examples
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import LampRecord, TagprError

SCHEMA = default_schema()
SMOKE = Path(__file__).resolve().parents[3] / "recipes" / "smoke.yaml"
DIRECT = partial(direct_messages, schema=SCHEMA)


def record(task: str, key: str, gold: str) -> LampRecord:
    return LampRecord(key, task, "train", "u", "the question", (), gold)


def chain(task: str, key: str, items: str, answer: str) -> dict[str, Any]:
    content = f"{reasoning_instruction(SCHEMA)}\n{items}\nthe question"
    response = f"<think><conclude>so</conclude></think> {answer}"
    return {"task": task, "record_id": key, "messages": [{"role": "user", "content": content}], "response": response}


def test_answers_are_the_golds_of_the_chains_questions_with_the_same_items() -> None:
    train = [record("LaMP_2", "1", "comedy"), record("LaMP_3", "1", "5"), record("LaMP_2", "2", "action")]
    chains = [
        chain("LaMP_2", "1", "an item", "comedy"),
        chain("LaMP_3", "1", "an item", "2"),  # a wrong one that was kept: the gold stands in
        chain("LaMP_2", "1", "no item", "comedy"),  # the same question, taught without a profile too
    ]  # question LaMP_2/2 has no chain that was kept, so it is not taught either
    examples = [(messages[0]["content"], answer) for messages, answer in answer_examples(chains, train, DIRECT)]
    assert examples == [
        (f"{DIRECT_INSTRUCTION}\nan item\nthe question", "comedy"),
        (f"{DIRECT_INSTRUCTION}\nan item\nthe question", "5"),
        (f"{DIRECT_INSTRUCTION}\nno item\nthe question", "comedy"),
    ]


def test_both_are_the_chains_and_then_their_answers() -> None:
    made, train = chain("LaMP_2", "1", "an item", "comedy"), [record("LaMP_2", "1", "comedy")]
    tagged, direct = (made["messages"], made["response"]), answer_examples([made], train, DIRECT)
    assert chain_examples("both", [made], train, DIRECT) == [tagged, *direct]
    assert chain_examples("chains", [made], train, DIRECT) == [tagged]
    assert chain_examples("answers", [made], train, DIRECT) == direct
    with pytest.raises(TagprError, match="two responses to one prompt"):
        load_recipe(SMOKE, ("stages.sft.dataset=both", "data.prompt.style=official"))
    both = load_recipe(SMOKE, ("stages.sft.dataset=both",))
    assert prompt_style(both, "sft") == "reasoning"


def test_chains_with_another_instruction_are_refused_and_published_prompts_stay() -> None:
    made = chain("LaMP_2", "1", "an item", "comedy")
    made["messages"][0]["content"] = "An older instruction.\nan item\nthe question"
    with pytest.raises(TagprError, match="'An older instruction"):
        answer_examples([made], [record("LaMP_2", "1", "comedy")], DIRECT)
    (example,) = answer_examples([made], [record("LaMP_2", "1", "comedy")], tuple)
    assert example == (tuple(made["messages"]), "comedy")


def recipe(style: str = "reasoning") -> Recipe:
    return recipe_from_dict(
        {
            "name": "arms",
            "data": {"prompt": {"style": style}},
            "stages": {
                "data": {"kind": "data"},
                "model": {"kind": "model"},
                "prompts": {"kind": "prompts"},
                "base": {"kind": "sft", "init": "model", "dataset": "direct"},
                "chains": {"kind": "chains"},
                "sft": {"kind": "sft", "init": "base", "dataset": "chains"},
                "answers": {"kind": "sft", "init": "base", "dataset": "answers"},
                "rl": {"kind": "grpo", "init": "base", "weights": {"beta": 0}},
            },
        },
        source="test",
    )


def test_the_arm_reads_the_chains_and_is_asked_for_direct_answers() -> None:
    arms = recipe()
    assert upstream(arms, "answers") == ("data", "base", "chains")
    styles = {name: prompt_style(arms, name) for name in ("base", "sft", "answers", "rl")}
    # GRPO's prompts ask for a thought whatever it starts from, so its evaluation does.
    assert styles == {"base": "direct", "sft": "reasoning", "answers": "direct", "rl": "reasoning"}
    official = recipe("official")
    assert prompt_style(official, "answers") == "direct" and answers_directly(official, "answers")
