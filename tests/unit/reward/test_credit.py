"""Where a tagged step's characters and tokens are, and what a step earns."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpr_rl.reward import response as reading
from tagpr_rl.reward.advantages.step import split_terms, step_reward
from tagpr_rl.reward.components import short_form
from tagpr_rl.reward.repetition import repetition_penalty, step_penalties
from tagpr_rl.reward.response import ResponseParts, to_tokens
from tagpr_rl.reward.spans import starts_by_encoding, token_starts, tokens_of
from tagpr_rl.tags.constraints import tag_parts, tag_score
from tagpr_rl.tags.grammar import parse, render, step_spans
from tagpr_rl.tags.schema import TagSchema, default_schema
from tagpr_rl.tags.words import plain_tokens
from tagpr_rl.types import Step, TaggedTrace

SCHEMA = default_schema()


def response_parts(text: str, schema: TagSchema) -> ResponseParts:
    return reading.response_parts(reading.read_response(text, schema))


words = st.text(st.sampled_from("ab c<>/é\u20ac.\n"), min_size=1, max_size=12)


@st.composite
def traces(draw: Any) -> TaggedTrace:
    def text() -> str:
        return (draw(words).replace("<", "‹").strip() or "x") if draw(st.booleans()) else draw(st.sampled_from("ab"))

    tags = draw(st.lists(st.sampled_from(SCHEMA.names), min_size=1, max_size=6))
    return TaggedTrace(tuple(Step(tag, text()) for tag in tags), "answer")


@given(traces(), st.booleans(), st.data())
def test_character_spans_hold_each_step_and_nothing_else(trace: TaggedTrace, prefilled: bool, data: Any) -> None:
    """What the spans leave out is white space, the think tags and the answer."""
    gap = data.draw(st.sampled_from(["", " ", "\n\n"]))
    response = render(trace, schema=SCHEMA, prefilled=prefilled).replace("\n<", f"{gap}<")
    parsed = parse(response, SCHEMA, prefilled=prefilled)
    assert parsed.trace is not None
    spans = step_spans(response, parsed.trace)
    for step, (start, end) in zip(parsed.trace.steps, spans, strict=True):
        assert response[start:end].startswith(f"<{step.tag}>") and response[start:end].endswith(f"</{step.tag}>")
        assert response[start:end][len(step.tag) + 2 : -len(step.tag) - 3].strip() == step.text
    rest = response
    for start, end in reversed(spans):
        rest = rest[:start] + rest[end:]
    assert "".join(rest.split()) == ("" if prefilled else "<think>") + "</think>answer"


class Bytes:
    """A tokenizer of UTF-8 pieces of up to `size` bytes, which cut through characters; id 0 is special."""

    def __init__(self, text: str, sizes: list[int]) -> None:
        raw, at, self.pieces = text.encode(), 0, [b""]
        self.ids = []
        while at < len(raw):
            size = sizes[len(self.ids) % len(sizes)]
            self.pieces.append(raw[at : at + size])
            self.ids.append(len(self.pieces) - 1)
            at += size

    def decode(self, ids: Any) -> str:
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


@given(traces(), st.lists(st.integers(1, 9), min_size=1, max_size=5), st.booleans())
def test_tokens_of_a_step_cover_its_characters(trace: TaggedTrace, sizes: list[int], special: bool) -> None:
    """Tokens cut anywhere, also through characters: a step's tokens begin in it, and all that begin in it are its."""
    response = render(trace, schema=SCHEMA)
    tokenizer = Bytes(response, sizes)
    ids = [*tokenizer.ids, 0] if special else tokenizer.ids
    starts = token_starts(ids, tokenizer.decode)
    assert len(starts) == len(ids) and starts == sorted(starts)
    truth = [len(b"".join(tokenizer.pieces[i] for i in ids[:k]).decode(errors="ignore")) for k in range(len(ids))]
    pieces = [response[start:end] for start, end in zip(truth, [*truth[1:], len(response)], strict=True)]
    blanks = [0 if piece.isspace() else len(piece) - len(piece.lstrip()) for piece in pieces]
    assert starts == [start + blank for start, blank in zip(truth, blanks, strict=True)]
    spans = step_spans(response, trace)
    actual = tokens_of(starts, spans)
    for (first, end), (start, stop) in zip(actual, spans, strict=True):
        assert [k for k in range(len(ids)) if start <= starts[k] < stop] == list(range(first, end))
    if sizes == [1] and response.isascii():
        decoded = [tokenizer.decode(ids[first:end]) for first, end in actual]
        assert decoded == [response[start:stop] for start, stop in spans]


def test_tokens_joined_by_spaces_and_special_ones() -> None:
    """A decoder that writes a space before every token but the first, as the demo's does."""
    vocabulary = ["<end>", "<a>", "x", "y", "</a>"]

    def decode(ids: Any) -> str:
        return " ".join(vocabulary[i] for i in ids if i)

    ids = [1, 2, 3, 4, 0]
    assert decode(ids) == "<a> x y </a>"
    assert token_starts(ids, decode) == [0, 4, 6, 8, 12]

    def encode(text: str) -> tuple[list[int], list[int]]:
        return [1, 2, 3, 4], [0, 4, 6, 8]

    assert starts_by_encoding(ids, decode(ids), encode, {0}) == [0, 4, 6, 8, 12]
    assert starts_by_encoding([1, 0, 2, 3, 4], "", encode, {0}) == [0, 4, 4, 6, 8]
    assert starts_by_encoding([1, 3, 3, 4], "", encode, {0}) is None  # not what the tokenizer would write


def test_a_decoder_that_tidies_up_across_tokens() -> None:
    """`a .` becomes `a.` only once the dot has come: windows would lose count, prefixes do not."""

    def decode(ids: Any) -> str:
        return "".join(("ab ", ".", "cd ")[i] for i in ids).replace(" .", ".")

    starts = token_starts([0, 1, 2, 1], decode)
    assert starts == sorted(starts) and len(starts) == 4 and starts[0] == 0 and starts[-1] <= len("ab.cd.")


def test_tokens_across_a_border_belong_to_where_they_begin() -> None:
    assert tokens_of([0, 2, 5, 6, 9], [(0, 3), (3, 6), (6, 10)]) == [(0, 2), (2, 3), (3, 5)]
    assert tokens_of([0, 8], [(2, 5)]) == [(1, 1)]  # one token swallowed the whole step


STEPS = "<examine_examples>a b c d</examine_examples> <examine_examples>a b c d</examine_examples>"


def test_parts_of_a_response_by_hand() -> None:
    """The second step repeats the first: a near-duplicate, and its 4-grams that lie in it alone have occurred."""
    actual = response_parts(f"<think>{STEPS}</think> yes", SCHEMA)
    assert [step.sound for step in actual.steps] == [True, False]
    required = dict(SCHEMA.required)
    assert actual.coverage == pytest.approx(1 / sum(required.values()))
    # 4-grams of a b c d | a b c d: abcd | bcda, cdab, dabc, abcd; the last of the four has occurred.
    assert [step.repetition for step in actual.steps] == [0.0, -0.25]
    assert (actual.steps[0].start, actual.steps[0].end) == (7, 7 + len("<examine_examples>a b c d</examine_examples>"))
    assert response_parts(f"<think>{STEPS}</think>", SCHEMA) == response_parts("", SCHEMA)  # no answer: malformed
    assert response_parts("", SCHEMA).steps == ()
    assert [step.words for step in actual.steps] == [4, 4] and actual.sound == 0.5
    assert ResponseParts.from_row(json.loads(json.dumps(actual.as_row()))) == actual


@given(traces())
def test_parts_make_up_the_scores_they_split(trace: TaggedTrace) -> None:
    texts = [step.text for step in trace.steps]
    parts = tag_parts(trace, SCHEMA)
    sound = [step.sound for step in response_parts(render(trace, schema=SCHEMA), SCHEMA).steps]
    assert parts.coverage * sum(sound) / len(sound) == pytest.approx(tag_score(trace, SCHEMA))
    for plain in {None: None, "plain": plain_tokens(texts)}.values():
        penalties = step_penalties(texts, plain)
        assert all(-1 <= value <= 0 for value in penalties)
        whole = repetition_penalty("\n".join(texts))
        assert (whole == 0) == (not any(penalties)) and min(penalties) <= whole + 1e-12


@given(st.lists(st.lists(st.sampled_from("ab"), max_size=6), min_size=1, max_size=5), st.integers(1, 4))
def test_steps_penalties_weighted_by_their_grams_are_the_thoughts(steps: list[list[str]], n: int) -> None:
    texts = [" ".join(step) for step in steps]
    penalties = step_penalties(texts, None, n)
    before, total = 0, 0.0
    for step, value in zip(steps, penalties, strict=True):
        grams = max(0, before + len(step) - n + 1) - max(0, before - n + 1)
        before += len(step)
        total += grams * value
    count = max(0, before - n + 1)
    assert total == pytest.approx(count * repetition_penalty(" ".join(texts), n))


def test_step_rewards_by_hand() -> None:
    actual = response_parts(f"<think>{STEPS}</think> yes", SCHEMA)
    assert step_reward(actual.steps[0], split_terms(short_form(alpha=0.2, gamma=0.1))) == 0.0
    assert step_reward(actual.steps[1], split_terms(short_form(alpha=0.3, gamma=0.1))) == pytest.approx(
        (0.3 * -1 + 0.1 * -0.25) / 0.4
    )


def test_spans_in_tokens() -> None:
    response = f"<think>{STEPS}</think> yes"
    ids = list(range(len(response)))
    actual = to_tokens(response_parts(response, SCHEMA), ids)  # one token a character
    assert [response[step.start : step.end] for step in actual.steps] == STEPS.replace("> <", ">\n<").split("\n")
