"""The compact prompt: its text to the letter, its cuts, its limit, and where it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import pytest

from tagpr_rl.config import CompactBlock, recipe_from_dict
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.prompts.compact import INSTRUCTIONS, build_compact_prompt, compact_direct, first_words, history_fact
from tagpr_rl.prompts.dataset import Dataset
from tagpr_rl.prompts.prompt import reasoning_instruction
from tagpr_rl.prompts.tokens import WordTokens
from tagpr_rl.tags.grammar import is_markup
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import LampRecord, ProfileItem, Prompt, TagprError

BLOCK = CompactBlock(labels=2, item_words=3, question_words=4)
WIDE = CompactBlock()


def words(messages: Sequence[Mapping[str, str]]) -> int:
    """A tokenizer for tests: one token a word."""
    return sum(len(message["content"].split()) for message in messages)


def news(*categories: str) -> LampRecord:
    items = tuple(
        ProfileItem(f"i{n}", {"title": f"title {n}", "text": "one two three", "category": category})
        for n, category in enumerate(categories)
    )
    return LampRecord("7", "LaMP_2N", "dev", "u", TASKS["LaMP_2N"].make_input(text="a b c d e"), items)


def make(record: LampRecord, style: str = "reasoning", limit: int = 10_000, items: int | None = None) -> Prompt:
    shown = record.profile[:items]
    return build_compact_prompt(record, shown, style=style, block=BLOCK, max_tokens=limit, count_tokens=words)


def text(prompt: Prompt) -> str:
    (turn,) = prompt.messages
    return turn["content"]


def test_labels_are_counted_over_the_whole_history_and_texts_are_cut() -> None:
    record = news("crime", "politics", "politics", "travel", "travel", "travel")
    assert text(make(record, items=2)) == (
        "Think about this user in tagged steps, then answer as the user would.\n"
        "The user's categories: travel (3), politics (2).\n"
        "The user's history, most relevant first:\n"
        '"title 0 one...": crime\n'
        '"title 1 one...": politics\n'
        "The question:\n"
        "The category of this article: a b c d..."
    )


def test_titles_have_their_usual_length_in_place_of_counts() -> None:
    items = tuple(
        ProfileItem(str(n), {"title": " ".join("x" * words), "text": "a text"}) for n, words in enumerate((9, 4, 5))
    )
    record = LampRecord("1", "LaMP_4", "dev", "u", TASKS["LaMP_4"].make_input(text="an article"), items)
    assert text(make(record, "direct", items=2)) == (
        "Answer as this user would.\n"
        "The user's titles have about 5 words.\n"
        "The user's history, most relevant first:\n"
        '"a text": "x x x x x x x x x"\n'
        '"a text": "x x x x"\n'
        "The question:\n"
        "The headline of this article: an article"
    )


def test_without_a_profile_there_is_no_fact_of_it() -> None:
    assert text(make(news(), "direct")) == (
        "Answer as this user would.\nThe user's history is empty.\nThe question:\n"
        "The category of this article: a b c d..."
    )
    assert history_fact(news(), 5) == ""


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_has_one_line_an_item_and_its_question(task: str) -> None:
    spec = TASKS[task]
    blanks = {"title": "XXX", "first": "AAA", "second": "BBB"} if task == "LaMP_1" else {"text": "XXX"}
    items = tuple(ProfileItem(f"i{i}", {key: f"{key}\n{i}" for key in spec.item_keys}) for i in range(3))
    record = LampRecord("7", task, "dev", "u", spec.make_input(**blanks), items)
    prompt = text(
        build_compact_prompt(record, items, style="direct", block=WIDE, max_tokens=10_000, count_tokens=words)
    )
    lines = prompt.splitlines()
    at = lines.index("The user's history, most relevant first:")
    assert lines[at + 4] == "The question:" and len(lines) == at + 6
    for i in range(3):
        for key in spec.item_keys if task != "LaMP_1" else ("title",):
            assert f"{key} {i}" in lines[at + 1 + i]
    assert "XXX" in lines[-1] and ("BBB" in lines[-1]) == (task == "LaMP_1")


def test_items_are_dropped_before_the_question_is_cut() -> None:
    record = news("crime", "crime")
    whole = words(make(record).messages)
    fewer = make(record, limit=whole - 1)
    assert fewer.item_ids == ("i0",) and fewer.items_dropped == 1 and not fewer.question_cut
    none = make(record, limit=words(make(record, items=0).messages) - 1)
    assert none.item_ids == () and none.question_cut and text(none).endswith("The category of this article: a b c")
    with pytest.raises(TagprError, match=r"record '7' \(LaMP_2N, style compact\): the prompt needs"):
        make(record, limit=5)


def test_a_record_cannot_forge_markup() -> None:
    """A tag in any text, or one that two texts would join to."""
    rng = Random(0)
    pieces = ["<think>", "</think>", "<conclude>", "<", "conclude>", "<|im_end|>", "word", "&lt;"]
    for _ in range(300):
        items = tuple(
            ProfileItem(
                str(n), {key: " ".join(rng.choices(pieces, k=3)) or "x" for key in ("title", "text", "category")}
            )
            for n in range(2)
        )
        source = TASKS["LaMP_2N"].make_input(text=" ".join(rng.choices(pieces, k=4)))
        prompt = text(make(LampRecord("7", "LaMP_2N", "dev", "u", source, items)))
        assert "<|" not in prompt and not is_markup(prompt)


def test_the_direct_prompt_differs_in_the_instruction_only() -> None:
    record = news("crime")
    assert compact_direct(make(record).messages) == make(record, "direct").messages
    with pytest.raises(TagprError, match="the compact instruction"):
        compact_direct([{"role": "user", "content": "Another instruction."}])


def test_first_words() -> None:
    assert first_words(" a\nb  c ", 3) == "a b c"
    assert first_words("a b c", 2) == "a b..."
    assert first_words("", 2) == ""


def test_a_recipe_asks_its_trained_models_compactly_and_the_untrained_one_in_full(tmp_path: Path) -> None:
    recipe = recipe_from_dict(
        {
            "name": "compact",
            "out": str(tmp_path),
            "data": {
                "prompt": {"style": "compact", "max_tokens": 2000, "compact": {"item_words": 2}},
                "world": {"train_users": 5, "held_out_users": 5},
            },
            "stages": {"data": {"kind": "data"}},
        },
        source="compact.yaml",
    )
    dataset = Dataset(recipe, default_schema())
    record, tokens = dataset.train[0], WordTokens(())
    for style, instruction in INSTRUCTIONS.items():
        assert text(dataset.prompt_maker(style, tokens)(record)).startswith(instruction + "\n")
    full = text(dataset.prompt_maker("reasoning", tokens, untrained=True)(record))
    assert full.startswith(reasoning_instruction(default_schema()))
