"""Grammar: every status, offsets, render and parse as inverses, markup, neutralise, linear time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpr_rl.tags.grammar import final_answer, is_markup, neutralise, parse, render
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import Parsed, ParseStatus, Step, TaggedTrace

SCHEMA = default_schema()
E, C = "examine_examples", "conclude"
OK_TEXT = f"<think>\n<{E}>saw it</{E}>\n<{C}>so 4</{C}>\n</think>\n4"

# Pieces that make markup likely wherever the grammar lets it arise.
pieces = st.sampled_from(
    ["<", ">", "/", " ", "think", "conclude", "Think", "b", "<think>", "</think>", "<conclude>",
     "</conclude>", "<b>", "< conclude >", "a < 3", "<3", "<|im_end|>", "\u2039", "\uff1c", "é", "\n", "\x1f",
     "\ud800", "word"]
)  # fmt: skip
texts = st.one_of(st.text(), st.lists(pieces, max_size=20).map("".join))
plain = texts.map(neutralise).map(str.strip).filter(bool)
traces = st.builds(
    TaggedTrace,
    st.lists(st.builds(Step, st.sampled_from(SCHEMA.names), plain), min_size=1, max_size=9).map(tuple),
    plain,
)


def test_ok() -> None:
    parsed = parse(OK_TEXT, SCHEMA)
    assert parsed.status is ParseStatus.OK
    assert parsed.trace == TaggedTrace((Step(E, "saw it"), Step(C, "so 4")), "4")
    assert (parsed.reason, parsed.offset) == ("", 0)
    assert render(parsed.trace) == OK_TEXT


def test_spaces_around_tags_text_and_answer_do_not_matter() -> None:
    spaced = f" <think> <{E}> saw it </{E}> <{C}>\tso 4\n</{C}> </think>  4 \n"
    assert parse(spaced, SCHEMA).trace == parse(OK_TEXT, SCHEMA).trace


@pytest.mark.parametrize(
    ("response", "status", "offset"),
    [
        ("", ParseStatus.NO_THOUGHT, 0),
        (" \n", ParseStatus.NO_THOUGHT, 0),
        ("  4", ParseStatus.NO_THOUGHT, 2),
        ("a < 3 <b>", ParseStatus.NO_THOUGHT, 0),
        (f"<{C}>x</{C}>4", ParseStatus.NO_THOUGHT, 0),
        ("</think>4", ParseStatus.NO_THOUGHT, 0),
        ("<Think>", ParseStatus.UNKNOWN_TAG, 0),
        (" < think >", ParseStatus.UNKNOWN_TAG, 1),
        (f"\n well <think><{C}>x</{C}></think>4", ParseStatus.TEXT_OUTSIDE, 2),
        ("<think>", ParseStatus.TRUNCATED, 7),
        (f"<think><{C}>x", ParseStatus.TRUNCATED, 18),
        (f"<think><{C}>x</concl", ParseStatus.TRUNCATED, 25),
        (f"<think><{C}>x</{C}> <exam", ParseStatus.TRUNCATED, 35),
        (f"<think><{C}>x</{C}> <", ParseStatus.TRUNCATED, 31),
        (f"<think><{C}>x</{C}> <3", ParseStatus.TEXT_OUTSIDE, 30),
        ("<think> hm", ParseStatus.TEXT_OUTSIDE, 8),
        (f"<think> hm <{C}>x</{C}></think>4", ParseStatus.TEXT_OUTSIDE, 8),
        (f"<think><{C}>x</{C}>\n hm</think>4", ParseStatus.TEXT_OUTSIDE, 31),
        (f"<think><{C}>x</{E}></think>4", ParseStatus.UNCLOSED, 18),
        (f"<think><{C}>x</think>4", ParseStatus.UNCLOSED, 18),
        (f"<think></{C}></think>4", ParseStatus.UNCLOSED, 7),
        (f"<think><{C}>x<{E}>y</{E}></{C}></think>4", ParseStatus.NESTED, 18),
        (f"<think><{C}>x<{C}>y</{C}></think>4", ParseStatus.NESTED, 18),
        (f"<think><{C}>x<think></{C}></think>4", ParseStatus.NESTED, 18),
        ("<think><think>", ParseStatus.NESTED, 7),
        (f"<think><{C}>x<b>y</b></{C}></think>4", ParseStatus.UNKNOWN_TAG, 18),
        (f"<think><{C}>x</ {C}></think>4", ParseStatus.UNKNOWN_TAG, 18),
        ("<think><Conclude>x</Conclude></think>4", ParseStatus.UNKNOWN_TAG, 7),
        (f"<think><{C}> \u3000\n</{C}></think>4", ParseStatus.EMPTY_STEP, 20),
        ("<think> </think>4", ParseStatus.NO_STEPS, 8),
        (f"<think><{C}>x</{C}></think>", ParseStatus.NO_ANSWER, 37),
        (f"<think><{C}>x</{C}></think> \n", ParseStatus.NO_ANSWER, 37),
        (f"<think><{C}>x</{C}></think>4</think>", ParseStatus.MARKUP_IN_ANSWER, 38),
        (f"<think><{C}>x</{C}></think><{C}>4</{C}>", ParseStatus.MARKUP_IN_ANSWER, 37),
        (f"<think><{C}>x</{C}></think>4 < think >", ParseStatus.MARKUP_IN_ANSWER, 39),
    ],
)
def test_status_and_offset(response: str, status: ParseStatus, offset: int) -> None:
    parsed = parse(response, SCHEMA)
    assert (parsed.status, parsed.offset, parsed.trace) == (status, offset, None)
    assert 0 < len(parsed.reason) < 200
    assert "\n" not in parsed.reason


@pytest.mark.parametrize("text", ["a < 3", "<3", "x > y", "<br/>", "<|im_end|>", "\u2039think\u203a",
                                  "\uff1cthink\uff1e", "<th\u0456nk>", "<9>", "<a b>", "</", "<>", "< >",
                                  "<-a>", "\uff1c/conclude>"])  # fmt: skip
def test_plain_text_is_plain_anywhere(text: str) -> None:
    assert not is_markup(text)
    assert neutralise(text) == text
    trace = TaggedTrace((Step(C, text),), text)
    assert parse(render(trace), SCHEMA).trace == trace


@pytest.mark.parametrize(
    "text", ["<b>", "</b>", "< b >", "<\nb\t>", "</ b>", "< / b>", "<Think>", "x<a-1_>y", "<<b>>"]
)  # fmt: skip
def test_markup_is_markup(text: str) -> None:
    assert is_markup(text)
    assert not is_markup(neutralise(text))
    assert parse(f"<think><{C}>{text}</{C}></think>4", SCHEMA).status is ParseStatus.UNKNOWN_TAG
    with pytest.raises(ValueError, match="markup"):
        render(TaggedTrace((Step(C, text),), "4"))
    with pytest.raises(ValueError, match="markup"):
        render(TaggedTrace((Step(C, "x"),), text))


def test_answer_may_hold_markup_of_its_own_only_with_the_schema() -> None:
    trace = TaggedTrace((Step(C, "x"),), "H<sub>2</sub>O")
    assert parse(render(trace, schema=SCHEMA), SCHEMA).trace == trace
    with pytest.raises(ValueError, match="answer"):
        render(trace)
    with pytest.raises(ValueError, match="answer"):
        render(TaggedTrace((Step(C, "x"),), f"a <{E}> b"), schema=SCHEMA)


def test_prefilled() -> None:
    trace = TaggedTrace((Step(C, "x"),), "4")
    without = render(trace, prefilled=True)
    assert without == f"<{C}>x</{C}>\n</think>\n4"
    assert parse(without, SCHEMA, prefilled=True).trace == trace
    assert parse(" " + render(trace), SCHEMA, prefilled=True).trace == trace
    assert parse(without, SCHEMA).status is ParseStatus.NO_THOUGHT
    assert parse("<think>" + render(trace), SCHEMA, prefilled=True).status is ParseStatus.NESTED
    assert parse("", SCHEMA, prefilled=True).status is ParseStatus.TRUNCATED
    assert parse("4", SCHEMA, prefilled=True).status is ParseStatus.TEXT_OUTSIDE
    assert parse("</think>4", SCHEMA, prefilled=True).status is ParseStatus.NO_STEPS


@pytest.mark.parametrize(
    ("trace", "part"),
    [
        (TaggedTrace((), "4"), "at least one step"),
        (TaggedTrace((Step("think", "x"),), "4"), "no tag name"),
        (TaggedTrace((Step("con clude", "x"),), "4"), "no tag name"),
        (TaggedTrace((Step("conclude\n", "x"),), "4"), "no tag name"),
        (TaggedTrace((Step("", "x"),), "4"), "no tag name"),
        (TaggedTrace((Step(C, "ok"), Step(C, " x")), "4"), "step 1: the text has white space"),
        (TaggedTrace((Step(C, "x\u3000"),), "4"), "white space"),
        (TaggedTrace((Step(C, ""),), "4"), "step 0: empty"),
        (TaggedTrace((Step(C, "x"),), ""), "answer: empty"),
        (TaggedTrace((Step(C, "x"),), "4\n"), "answer: the text has white space"),
    ],
)
def test_render_refuses_what_it_cannot_write(trace: TaggedTrace, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        render(trace)


def test_render_with_a_schema_checks_tags() -> None:
    with pytest.raises(ValueError, match="no tag of the schema"):
        render(TaggedTrace((Step("other", "x"),), "4"), schema=SCHEMA)


@given(traces, st.booleans())
def test_parse_inverts_render(trace: TaggedTrace, prefilled: bool) -> None:
    parsed = parse(render(trace, prefilled=prefilled), SCHEMA, prefilled=prefilled)
    assert parsed == Parsed(ParseStatus.OK, trace, "", 0)


@given(texts, st.booleans())
def test_any_text_has_a_consistent_verdict(text: str, prefilled: bool) -> None:
    parsed = parse(text, SCHEMA, prefilled=prefilled)
    assert (parsed.trace is not None) == (parsed.status is ParseStatus.OK) == (parsed.reason == "")
    assert 0 <= parsed.offset <= len(text)
    if parsed.trace is not None:
        assert parse(render(parsed.trace, schema=SCHEMA), SCHEMA).trace == parsed.trace


@given(texts)
def test_neutralise(text: str) -> None:
    once = neutralise(text)
    assert not is_markup(once)
    assert neutralise(once) == once
    assert (once == text) == (not is_markup(text))
    assert once.replace("\u2039", "<") == text.replace("\u2039", "<")  # only "<" changes


@given(texts)
def test_quoted_text_forges_no_tag(text: str) -> None:
    """A neutralised user text inside a step leaves the response's structure as it is."""
    parsed = parse(f"<think><{E}>He wrote: {neutralise(text)}.</{E}></think>4", SCHEMA)
    assert parsed.trace is not None
    assert (len(parsed.trace.steps), parsed.trace.answer) == (1, "4")


def test_final_answer_is_lenient() -> None:
    assert final_answer(OK_TEXT) == "4"
    assert final_answer(" 4\n") == "4"
    assert final_answer("a</think>b</think> c ") == "c"
    assert final_answer("<think>cut") == ""
    assert final_answer("x</think>") == ""


@pytest.mark.parametrize(
    "text",
    ["<" * 300_000, "< " * 150_000, "<" + " " * 300_000, "</" + " " * 300_000, "<" + "a" * 300_000 + "!",
     "<a" * 150_000, "<think>" * 50_000, "<think>" + " " * 300_000, " " * 300_000, "<\t/\n" * 80_000,
     "<think>" + f"<{C}>x</{C}>" * 15_000 + "</think>4", f"<think><{C}>" + "a <" * 100_000,
     "<think> <" + "a" * 300_000]
)  # fmt: skip
def test_time_is_linear(text: str) -> None:
    """Tenths of a second when linear; a scan that backtracks over the spaces or the name takes minutes."""
    started = time.process_time()
    parse(text, SCHEMA)
    parse(text, SCHEMA, prefilled=True)
    neutralise(text)
    final_answer(text)
    assert time.process_time() - started < 5
