"""The fast paths of parsing and rewards against plain slow definitions, on ordinary, odd and hostile texts."""

from __future__ import annotations

import random
import re
import time
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

from tagpr_rl.reward.repetition import repetition_penalty
from tagpr_rl.reward.rubric import Rubric
from tagpr_rl.reward.task import rouge, rouge_tokens
from tagpr_rl.tags import constraints, grammar
from tagpr_rl.tags.constraints import DUPLICATE_JACCARD, tag_score, violations
from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import MAX_STEPS, TagSchema, default_schema
from tagpr_rl.types import ParseStatus, Step, TaggedTrace

SCHEMA = default_schema()
COMMON = ["the", "a", "of", "user", "likes", "it", "and", "films", "dark", "comedy"]
ODD = [
    "naïve", "東京", "don't", "e-mail", "snake_case", "x" * 40, "…", "“quoted”", "ﬁne", "İ", "ß", "\u200b", "…!",
    "A.B", "3.5", "\x1c", "\x85", "a\u0301", "_", "__", "`", "\x00", "\u212a",
]  # fmt: skip


# ---- the plain definitions ----


def plain_repetition(text: str, n: int = 4) -> float:
    tokens = re.findall(r"\w{1,16}|[^\w\s]", text.lower())
    grams = [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]
    return (len(set(grams)) - len(grams)) / len(grams) if grams else 0.0


def plain_words(text: str) -> list[str]:
    head = unicodedata.normalize("NFKC", text[: constraints.MAX_CHARS])
    head = "".join(char for char in head if unicodedata.category(char) != "Cf")
    return re.findall(r"[^\W_]+", head.casefold())[: constraints.MAX_WORDS]


def plain_faults(trace: TaggedTrace, schema: TagSchema) -> list[str | None]:
    faults: list[str | None] = []
    seen: Counter[str] = Counter()
    earlier: list[tuple[set[str], set[tuple[str, str]]]] = []
    for index, step in enumerate(trace.steps):
        spec = schema.by_name[step.tag]
        words = plain_words(step.text)
        if index >= MAX_STEPS:
            faults.append("surplus")
            continue
        if not words:
            faults.append("wordless")
            continue
        bag, pairs = set(words), set(zip(["", *words], [*words, ""], strict=True))
        twin = any(bag == b or len(pairs & p) >= DUPLICATE_JACCARD * len(pairs | p) for b, p in earlier)
        earlier.append((bag, pairs))
        if twin:
            faults.append("duplicate")
        elif seen[step.tag] >= spec.max_count:
            faults.append("surplus")
        else:
            late = not seen[step.tag] and any(seen[name] for name in spec.before)
            seen[step.tag] += 1
            faults.append("late" if late else None)
    return faults


def plain_tag_score(trace: TaggedTrace, schema: TagSchema) -> float:
    faults = plain_faults(trace, schema)
    useful = Counter(s.tag for s, fault in zip(trace.steps, faults, strict=True) if fault in (None, "late"))
    needed = sum(spec.min_count for spec in schema.tags)
    covered = sum(min(useful[spec.name], spec.min_count) for spec in schema.tags)
    return covered * faults.count(None) / (needed * len(faults))


# ---- texts ----


def words(rng: random.Random, n: int) -> str:
    kind = rng.random()
    pool = COMMON if kind < 0.3 else [*COMMON, *ODD] if kind < 0.6 else [f"w{rng.randrange(400)}" for _ in range(60)]
    return rng.choice([" ", " ", "\n", "  ", ", "]).join(rng.choices([*pool, "end.", "(so)"], k=n))


def traces(n: int, seed: int) -> list[TaggedTrace]:
    """Chains with near-copies of earlier steps: a word changed, words swapped, another case."""
    rng = random.Random(seed)
    made = []
    for _ in range(n):
        steps: list[Step] = []
        for _ in range(rng.choice([1, 2, 5, 9, 70])):
            text = words(rng, rng.randint(1, 30))
            if steps and rng.random() < 0.4:
                parts = rng.choice(steps).text.split(" ")
                for _ in range(rng.randint(0, 3)):
                    parts[rng.randrange(len(parts))] = rng.choice([*COMMON, "new", "I", ""])
                rng.random() < 0.3 and rng.shuffle(parts)
                text = " ".join(parts).upper() if rng.random() < 0.2 else " ".join(parts)
            steps.append(Step(rng.choice(SCHEMA.names), text.strip() or "x"))
        made.append(TaggedTrace(tuple(steps), "comedy"))
    return made


def test_tag_scores_equal_the_plain_definition() -> None:
    kinds: Counter[str | None] = Counter()
    for trace in traces(1500, seed=0):
        faults = plain_faults(trace, SCHEMA)
        kinds.update(faults)
        assert tag_score(trace, SCHEMA) == plain_tag_score(trace, SCHEMA)
        named = [sentence for sentence in violations(trace, SCHEMA) if sentence.startswith("step ")]
        assert [int(s.split()[1]) for s in named] == [at for at, fault in enumerate(faults) if fault]
    assert all(kinds[kind] > 100 for kind in (None, "duplicate", "surplus", "late"))  # each kind was met


def test_repetition_equals_the_plain_definition() -> None:
    rng = random.Random(1)
    met = 0
    for _ in range(3000):
        text = words(rng, rng.randint(0, 60))
        text += rng.choice(["", text, text[:20] * 3, "ha" * rng.randint(0, 30)])
        n = rng.randint(1, 5)
        assert repetition_penalty(text, n) == plain_repetition(text, n)
        met += repetition_penalty(text, n) < 0
    assert met > 500


@settings(max_examples=300)
@given(st.text(st.characters(max_codepoint=0x250), max_size=60), st.integers(1, 4))
def test_repetition_of_any_text(text: str, n: int) -> None:
    assert repetition_penalty(text, n) == plain_repetition(text, n)


def test_every_character_is_cut_like_the_regular_expression_cuts_it() -> None:
    for code in range(0x300):
        char = chr(code)
        text = f"a{char}b {char} {char * 3} c"
        assert repetition_penalty(text, 1) == plain_repetition(text, 1)
        assert constraints._words(text) == plain_words(text)


PIECES = [
    "<think>", "</think>", "<conclude>", "</conclude>", "<check_answer>", "</check_answer>", " text", "\n", "a > b",
    "a < b", "< conclude >", "<Conclude>", "<b>", "</", "<", ">", " ", "\u3000", "comedy", "<think", "/conclude>",
    "\x00",
]  # fmt: skip


@settings(max_examples=1500)
@given(st.lists(st.sampled_from(PIECES), max_size=12), st.booleans())
def test_cutting_at_brackets_never_changes_a_verdict(pieces: list[str], prefilled: bool) -> None:
    agree("".join(pieces), prefilled)


def agree(response: str, prefilled: bool) -> ParseStatus:
    fast = parse(response, SCHEMA, prefilled=prefilled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grammar, "_parse_plain", lambda *arguments: None)
        assert parse(response, SCHEMA, prefilled=prefilled) == fast
    return fast.status


def test_mutated_responses_get_the_same_verdict() -> None:
    rng = random.Random(2)
    statuses: Counter[ParseStatus] = Counter()
    for trace in traces(400, seed=3):
        steps = [Step(step.tag, grammar.neutralise(step.text)) for step in trace.steps[:6]]
        response = grammar.render(TaggedTrace(tuple(steps), "a > b"))
        for _ in range(10):
            at = rng.randrange(len(response))
            piece = rng.choice(PIECES)
            mutated = rng.choice([response, response[:at] + piece + response[at:], response[:at], response[at:]])
            statuses[agree(mutated, rng.random() < 0.5)] += 1
    assert len(statuses) >= 9
    assert statuses[ParseStatus.OK] > 500


# ---- ROUGE against rouge_score ----


def test_rouge_equals_rouge_score() -> None:
    rng = random.Random(4)
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    for _ in range(1500):
        pair = [words(rng, rng.choice([0, 1, 3, 12, 40])) for _ in range(2)]
        if rng.random() < 0.3:
            pair[0] = pair[1].replace("the", "The!")
        actual = scorer.score(pair[1], pair[0])
        assert rouge(pair[0], pair[1], max_tokens=None) == (actual["rouge1"].fmeasure, actual["rougeL"].fmeasure)


@settings(max_examples=300)
@given(st.text(max_size=40))
def test_rouge_tokens_are_rouge_scores(text: str) -> None:
    assert [token.decode() for token in rouge_tokens(text)] == tokenize(text, None)


def test_rouge_tokens_of_every_character() -> None:
    for code in [*range(0x3000), 0xFF21, 0x1D400, 0x212A]:
        text = f"a{chr(code)}B"
        assert [token.decode() for token in rouge_tokens(text)] == tokenize(text, None)


# ---- and they stay fast where it could go wrong ----


def test_a_loop_of_equal_steps_costs_no_more_than_the_limits_allow() -> None:
    step = Step("conclude", " ".join(f"w{n % 200}" for n in range(512)))
    trace = TaggedTrace((step,) * 500, "comedy")
    started = time.process_time()
    assert tag_score(trace, SCHEMA) == plain_tag_score(trace, SCHEMA)
    response = grammar.render(trace)
    Rubric(SCHEMA).score(response, task="LaMP_2", gold="comedy")
    assert time.process_time() - started < 3.0  # .1 s here
