"""A response in pieces gives the same thought and answer however it is cut, and `parse` agrees if it accepts it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_rl.tags.ebnf import ebnf
from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import TagSchema, TagSpec, default_schema
from tagpr_rl.tags.streaming import ThoughtStream, split_response

SCHEMA = default_schema()
PIECES = (
    "<think>", "</think>", "<examine_examples>", "</examine_examples>", "<conclude>", "</conclude>", "word", " ", "\n",
    "<", "</", "<thi", "nk>", "think>", "/", "ü", "</ think>", "<think >", "3 < 4", ">",
)  # fmt: skip


def streamed(pieces: list[str], *, prefilled: bool = False) -> tuple[str, str]:
    stream = ThoughtStream(prefilled)
    got = [stream.feed(piece) for piece in pieces]
    return "".join(thought for thought, _ in got), "".join(answer for _, answer in got)


@pytest.mark.parametrize(
    "text, prefilled, thought, answer",
    [
        ("<think>\n<conclude>yes</conclude>\n</think>\n 42 \n", False, "<conclude>yes</conclude>", "42"),
        ("<conclude>yes</conclude></think>42", True, "<conclude>yes</conclude>", "42"),
        ("\n<think>\na</think>b", True, "a", "b"),
        ("  just an answer ", False, "", "just an answer"),
        ("<thinker> is a word", False, "", "<thinker> is a word"),
        ("<think>cut at the limit </thi", False, "cut at the limit", ""),
        ("<think>a < b </ think>", False, "a < b </ think>", ""),
        ("<think>a</think>b </think> c", False, "a", "b </think> c"),
        ("<thi", False, "", ""),
        ("", True, "", ""),
        ("<think>one\n\n two</think>three\n\nfour", False, "one\n\n two", "three\n\nfour"),
    ],
)
def test_by_hand(text: str, prefilled: bool, thought: str, answer: str) -> None:
    assert split_response(text, prefilled=prefilled) == (thought, answer)
    assert streamed(list(text), prefilled=prefilled) == (thought, answer)


def test_nothing_waits_that_can_be_shown() -> None:
    stream = ThoughtStream()
    assert [stream.feed(piece) for piece in ("<think>", "a ", "b", " <", "i>", "</thi", "nk>", "\n4", "2")] == [
        ("", ""), ("a", ""), (" b", ""), ("", ""), (" <i>", ""), ("", ""), ("", ""), ("", "4"), ("", "2"),
    ]  # fmt: skip


@settings(max_examples=2000)
@given(st.lists(st.sampled_from(PIECES), max_size=14), st.booleans(), st.randoms(use_true_random=False))
def test_every_cut_gives_the_whole(parts: list[str], prefilled: bool, random: Random) -> None:
    text = "".join(parts)
    whole = split_response(text, prefilled=prefilled)
    assert streamed(list(text), prefilled=prefilled) == whole
    cut = random.randint(0, len(text))
    assert streamed([text[:cut], text[cut:]], prefilled=prefilled) == whole
    parsed = parse(text, SCHEMA, prefilled=prefilled)
    if parsed.trace is not None:
        assert whole[1] == parsed.trace.answer
        assert parse(f"<think>{whole[0]}</think>{whole[1]}", SCHEMA).trace == parsed.trace


def test_the_grammar_by_hand() -> None:
    schema = TagSchema("two", (TagSpec("look", "look"), TagSpec("say", "say")))
    assert ebnf(schema) == (
        'root ::= "<think>" space (step space)+ "</think>" space text\n'
        'step ::= "<look>" text "</look>" | "<say>" text "</say>"\n'
        "text ::= [^< \\n\\r\\t] [^<]*\nspace ::= [ \\n]?\n"
    )
    assert ebnf(schema, prefilled=True).startswith("root ::= (step space)+")
