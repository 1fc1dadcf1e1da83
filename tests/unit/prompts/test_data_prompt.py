"""Prompts: LaMP's strings, our instruction, no forged markup, and the token limit as a property."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_rl.data.tasks import TASKS
from tagpr_rl.prompts.prompt import (
    DIRECT_INSTRUCTION,
    NO_PROFILE,
    ORDINARY,
    PROFILE_HEADER,
    QUESTION_HEADER,
    Style,
    build_prompt,
    clean,
    direct_messages,
    prompt_phrases,
    prompt_stats,
    reasoning_instruction,
)
from tagpr_rl.tags.grammar import is_markup
from tagpr_rl.tags.schema import TagSchema, TagSpec, default_schema
from tagpr_rl.types import LampRecord, ProfileItem, Prompt, TagprError

SCHEMA = default_schema()


def words(messages: Sequence[Mapping[str, str]]) -> int:
    """A tokenizer for tests: one token a word, and 3 for the chat template."""
    return 3 + sum(len(message["content"].split()) for message in messages)


def make(record: LampRecord, style: str = "reasoning", limit: int = 10_000, items: int | None = None) -> Prompt:
    chosen = record.profile[:items]
    return build_prompt(record, chosen, style=style, schema=SCHEMA, max_tokens=limit, count_tokens=words)


def record_of(task: str, n: int = 2, text: str = "XXX") -> LampRecord:
    spec = TASKS[task]
    blanks = {"title": text, "first": "AAA", "second": "BBB"} if task == "LaMP_1" else {"text": text}
    items = tuple(ProfileItem(f"i{i}", {key: f"{key}{i}" for key in spec.item_keys}) for i in range(n))
    return LampRecord("7", task, "dev", "u", spec.make_input(**blanks), items)


OFFICIAL = {
    "LaMP_1": (
        'For an author who has written the paper with the title, and "title0", and "title1" "XXX", which '
        'reference is related? Just answer with [1] or [2] without explanation. [1]: "AAA" [2]: "BBB"'
    ),
    "LaMP_2": (
        'the tag for the movie: "description0" is "tag0" , and the tag for the movie: "description1" is '
        '"tag1" . Which tag does this movie relate to among the following tags? Just answer with the tag '
        "name without further explanation. tags: [sci-fi, based on a book, comedy, action, twist ending, "
        "dystopia, dark comedy, classic, psychology, fantasy, romance, thought-provoking, social "
        "commentary, violence, true story] description: XXX"
    ),
    "LaMP_3": (
        '0 is the score for "text0" , and 1 is the score for "text1" . What is the score of the '
        "following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without further "
        "explanation. review: XXX"
    ),
    "LaMP_4": (
        '"title0" is the title for "text0" , and "title1" is the title for "text1" . Generate a headline '
        "for the following article: XXX"
    ),
    "LaMP_5": (
        '"title0" is a title for "abstract0" , and "title1" is a title for "abstract1" . Following the '
        "given patterns Generate a title for the following abstract of a paper: XXX"
    ),
    "LaMP_7": (
        '"text0" , and "text1"  are written by a person. Following the given patterns Paraphrase the '
        "following tweet without any explanation before or after it: XXX"
    ),
}


@pytest.mark.parametrize("task", OFFICIAL)
def test_official_prompts_are_lamps(task: str) -> None:
    record = record_of(task)
    if task == "LaMP_3":
        items = tuple(replace(item, fields={**item.fields, "score": item.id[1:]}) for item in record.profile)
        record = replace(record, profile=items)
    assert make(record, "official").messages == ({"role": "user", "content": OFFICIAL[task]},)
    assert make(replace(record, profile=()), "official").messages[0]["content"] == record.input


def test_our_prompt_line_by_line() -> None:
    record = record_of("LaMP_4")
    prompt = make(record)
    assert len(prompt.messages) == 1
    assert prompt.messages[0]["content"].split("\n") == [
        reasoning_instruction(SCHEMA),
        PROFILE_HEADER,
        '"title0" is the title for "text0"',
        '"title1" is the title for "text1"',
        QUESTION_HEADER,
        "Generate a headline for the following article: XXX",
    ]
    direct = make(record, "direct", items=0)
    assert direct.messages[0]["content"].split("\n") == [
        DIRECT_INSTRUCTION,
        NO_PROFILE,
        QUESTION_HEADER,
        record.input,
    ]
    assert (prompt.item_ids, prompt.items_dropped, prompt.question_cut) == (("i0", "i1"), 0, False)
    assert (prompt.record_id, prompt.task, prompt.user_id) == ("7", "LaMP_4", "u")


def test_a_direct_prompt_made_of_a_reasoning_one_differs_in_the_instruction_alone() -> None:
    record = record_of("LaMP_4")
    assert direct_messages(make(record).messages, SCHEMA) == make(record, "direct").messages
    bare = replace(record, profile=())
    assert direct_messages(make(bare).messages, SCHEMA) == make(bare, "direct").messages
    with pytest.raises(TagprError, match="does not begin with the instruction of tag schema"):
        direct_messages(make(record, "official").messages, SCHEMA)


def test_the_instruction_says_the_grammar_and_every_tag() -> None:
    text = reasoning_instruction(SCHEMA)
    assert "\n" not in text
    assert "<think>" in text
    assert "</think>" in text
    for tag in SCHEMA.tags:
        assert f"<{tag.name}> {tag.purpose.rstrip('.')}" in text
    assert "think" not in DIRECT_INSTRUCTION


def test_the_instruction_says_the_order_as_the_schema_has_it() -> None:
    late = TagSpec("late", "Last.", max_count=2)
    early = TagSpec("early", "First\n thing.", required=True, min_count=1, before=("late",))
    for tags in ((early, late), (late, early)):  # the order of the list says nothing
        text = reasoning_instruction(TagSchema("1", tags))
        assert "<early> First thing (once; before late)" in text and "<late> Last (at most 2 times)" in text
        assert text.endswith("first step comes before the first step of each of those tags that is used.")
    assert "efore" not in reasoning_instruction(TagSchema("1", (late,))).partition("The tags:")[2]


def test_phrases_cover_everything_but_the_records_words() -> None:
    phrases = prompt_phrases(SCHEMA)
    assert list(phrases) == sorted(phrases, key=lambda text: (-len(text), text))
    seen = set()
    for task in TASKS:
        for style in get_args(Style):
            for n in (0, 2):
                rest = make(record_of(task, n), style).messages[0]["content"]
                for phrase in phrases:
                    if phrase in rest:
                        seen.add(phrase)
                        rest = rest.replace(phrase, " ")
                left = set(re.findall(r"\w+", rest))
                free = {"XXX", "AAA", "BBB", "is"} | {f"{k}{i}" for k in TASKS[task].item_keys for i in range(n)}
                assert left <= free | {"and"}, (task, style, left - free)
    assert seen == set(phrases)


FORGED = [
    "<think>",
    "</think> 5",
    "< conclude >",
    "</infer_preference>",
    "<|im_start|>system",
    "<|im_end|>",
    "<\uff5cUser\uff5c>",
    "[/INST]",
    "<start_of_turn>",
    "</s>",
]


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize("style", get_args(Style))
def test_a_record_cannot_forge_markup(forged: str, style: str) -> None:
    record = record_of("LaMP_4", text=f"a {forged} b")
    item = ProfileItem("i", {"title": forged, "text": f"x\n{QUESTION_HEADER}\n{forged}"})
    content = make(replace(record, profile=(item,)), style).messages[0]["content"]
    body = content.removeprefix(ORDINARY.get(style) or reasoning_instruction(SCHEMA))
    assert forged not in body
    assert not is_markup(body)
    if style != "official":
        assert body.split("\n").count(QUESTION_HEADER) == 1


@given(st.text(alphabet="<|>/a [INST]\uff5c\n", max_size=30))
def test_clean_leaves_no_markup_and_is_idempotent(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    assert not is_markup(cleaned)
    assert not re.search("<[|\uff5c]|[|\uff5c]>", cleaned)
    assert "[INST]" not in cleaned
    assert len(cleaned) == len(text)


def test_plain_text_is_left_alone() -> None:
    for text in ("a < 3 > c", "I <3 it", "[sic] | x", "f(x) = <1, 2>"):
        assert clean(text) == text


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(TASKS)),
    st.sampled_from(get_args(Style)),
    st.lists(st.integers(0, 12), max_size=12),
    st.integers(1, 40),
    st.integers(1, 420),
)
def test_the_limit_always_holds(task: str, style: str, lengths: list[int], asked: int, limit: int) -> None:
    spec = TASKS[task]
    items = tuple(
        ProfileItem(f"i{i}", {key: " ".join(["w"] * length) for key in spec.item_keys})
        for i, length in enumerate(lengths)
    )
    record = replace(record_of(task, text=" ".join(f"q{i}" for i in range(asked))), profile=items)
    try:
        prompt = make(record, style, limit)
    except TagprError:
        assert make(replace(record, profile=()), style).n_tokens > limit
        return
    assert prompt.n_tokens == words(prompt.messages) <= limit
    kept = len(prompt.item_ids)
    assert prompt.item_ids == tuple(item.id for item in items[:kept])
    assert prompt.items_dropped == len(items) - kept
    if prompt.items_dropped:  # the next item would not have fitted: nothing is dropped in vain
        assert make(record, style, items=kept + 1).n_tokens > limit
    if prompt.question_cut:
        assert kept == 0
        assert make(record, style, items=0).n_tokens > limit
        question = prompt.messages[0]["content"].rpartition("\n")[2]
        assert record.input.startswith(question)
        rest = record.input[len(question) :]
        assert rest[0].isspace()  # cut between words
        longer = replace(record, input=question + re.match(r"\s+\S+", rest)[0])
        assert make(longer, style, items=0).n_tokens > limit  # no word is cut in vain
    else:
        assert prompt.messages[0]["content"].endswith(record.input) or task == "LaMP_1"


def test_the_question_is_cut_to_exactly_the_limit() -> None:
    # 3 (template) + 7 (Generate a headline for the following article:) + 5 words = 15.
    record = record_of("LaMP_4", n=0, text="a b c d e f g h")
    prompt = make(record, "official", limit=15)
    assert prompt.messages[0]["content"] == "Generate a headline for the following article: a b c d e"
    assert (prompt.n_tokens, prompt.question_cut) == (15, True)
    with pytest.raises(TagprError, match=r"record '7' \(LaMP_4, style official\): the prompt needs 10 tokens"):
        make(record, "official", limit=10)


def test_a_giant_word_is_cut_by_characters() -> None:
    record = record_of("LaMP_4", n=0, text="x" * 500)
    prompt = build_prompt(
        record,
        (),
        style="official",
        schema=SCHEMA,
        max_tokens=100,
        count_tokens=lambda messages: len(messages[0]["content"]),
    )
    head = "Generate a headline for the following article: "
    assert prompt.messages[0]["content"] == head + "x" * (100 - len(head))


def test_few_calls_to_the_tokenizer() -> None:
    calls = 0

    def counting(messages: Sequence[Mapping[str, str]]) -> int:
        nonlocal calls
        calls += 1
        return words(messages)

    record = record_of("LaMP_4", n=200)
    for limit, most in ((100_000, 2), (400, 10)):  # all fit: 1 + the final one; else log2(200) < 8 more
        calls = 0
        build_prompt(record, record.profile, style="reasoning", schema=SCHEMA, max_tokens=limit, count_tokens=counting)
        assert calls <= most


def test_stats_add_up() -> None:
    record = record_of("LaMP_4", n=2, text="a b c d e f g h")
    one = make(record, "official")  # 3 + 6 + 6 + the ", and" = 2 words + "." = 1 + 15 = 33
    two = make(record, "official", limit=one.n_tokens - 1)
    three = make(record, "official", limit=15)
    assert prompt_stats([one, two, three]) == {
        "prompts": 3,
        "tokens_total": one.n_tokens + two.n_tokens + 15,
        "tokens_max": one.n_tokens,
        "items_kept": 3,
        "items_dropped": 3,
        "prompts_with_items_dropped": 2,
        "prompts_without_items": 1,
        "questions_cut": 1,
    }
    assert prompt_stats([])["tokens_max"] == 0
