"""Fuzz the parser, the constraints, the spans and the rubric: seeded mutations of valid responses; no exception, every
key, every range. Every tenth response is also streamed, one character at a time.

Run: python bench/fuzz_parser.py --n 1000000 --seed 0
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tagpr_rl.reward.components import short_form
from tagpr_rl.reward.response import ResponseParts
from tagpr_rl.reward.rubric import Rubric
from tagpr_rl.reward.spans import tokens_of
from tagpr_rl.reward.task import TASK_NAMES, task_reward
from tagpr_rl.tags.constraints import violations
from tagpr_rl.tags.grammar import is_markup, neutralise, parse, render
from tagpr_rl.tags.schema import TagSchema, TagSpec, default_schema
from tagpr_rl.tags.streaming import ThoughtStream, split_response
from tagpr_rl.types import Parsed, ParseStatus, Step, TaggedTrace

VOCABULARY = (
    "the user likes short dry titles about space history [1] [2] 4 five sci-fi romance because item shows "
    "a < 3 <3 x>y 3<4>2 <|im_end|> <br/> naïve 東京 привет \U0001f600 caf\u00e9 "
    "‹think› ＜think＞ &lt;think&gt; 1e400 nan"
)
WORDS = tuple(VOCABULARY.split())
GOLDS = {"LaMP_1": "[1]", "LaMP_2": "sci-fi", "LaMP_2N": "style & beauty", "LaMP_3": "4"}
TEXT_GOLD = "Five short titles about the history of space"
ANSWERS = ("[1]", "[2]", "sci-fi", "style & beauty", "4", "9", "-1", "nan", "1e400", TEXT_GOLD, "a < 3")
JUNK = (
    "<think>", "</think>", "<Think>", "< think >", "<think", "</", "<", ">", "<b>", "</b>", "<conclude>",
    "</conclude>", "<examine_examples>", "</examine_examples >", "\u2039think\u203a", "\uff1cthink\uff1e",
    "\x00", "\ud800", "\u200b", "\u202e", "\n\n", "\t", "<|im_end|>", "<<think>>", "<think/>",
    "<th\u0456nk>", "text",
)  # fmt: skip
OTHER_SCHEMA = TagSchema(
    "other",
    (
        TagSpec("a-b", "One.", True, 2, 3, ("b", "conclude")),
        TagSpec("b", "Two.", max_count=2),
        TagSpec("conclude", "Three.", before=("_x9",)),
        TagSpec("_x9", "Four."),
    ),
)
LOW, HIGH = {"repetition": -1.0, "total": -0.1}, {"repetition": 0.0, "total": 1.4}

Mutation = Callable[[random.Random, str], str]


def make_trace(rng: random.Random, schema: TagSchema) -> TaggedTrace:
    """A random valid trace: 1 to 9 steps of 1 to 14 words."""
    steps = tuple(
        Step(rng.choice(schema.names), neutralise(" ".join(rng.choices(WORDS, k=rng.randint(1, 14)))))
        for _ in range(rng.randint(1, 9))
    )
    return TaggedTrace(steps, rng.choice(ANSWERS))


def delete_span(rng: random.Random, text: str) -> str:
    """Cut out up to 30 characters."""
    at = rng.randrange(len(text) + 1)
    return text[:at] + text[at + rng.randint(1, 30) :]


def truncate(rng: random.Random, text: str) -> str:
    """Keep a prefix."""
    return text[: rng.randrange(len(text) + 1)]


def insert_junk(rng: random.Random, text: str) -> str:
    """Insert one to four pieces of junk at random places."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(JUNK) + text[at:]
    return text


def change_character(rng: random.Random, text: str) -> str:
    """Replace one character by any code point, surrogates included."""
    at = rng.randrange(len(text) + 1)
    return text[:at] + chr(rng.randrange(0x110000)) + text[at + 1 :]


def shuffle_lines(rng: random.Random, text: str) -> str:
    """Reorder lines, so that steps leave the thought or the answer enters it."""
    lines = text.split("\n")
    rng.shuffle(lines)
    return "\n".join(lines)


def duplicate_line(rng: random.Random, text: str) -> str:
    """Write one line twice."""
    lines = text.split("\n")
    at = rng.randrange(len(lines) + 1)
    return "\n".join([*lines[:at], rng.choice(lines), *lines[at:]])


def swap_tags(rng: random.Random, text: str) -> str:
    """Exchange a piece of markup for another everywhere or once."""
    return text.replace(rng.choice(JUNK[:14]), rng.choice(JUNK), rng.choice((-1, 1)))


def drop_markup(rng: random.Random, text: str) -> str:
    """Remove one piece of markup."""
    pieces = text.split(">")
    at = rng.randrange(len(pieces))
    return ">".join(pieces[:at] + pieces[at + 1 :])


def empty_step(rng: random.Random, text: str) -> str:
    """Blank what one step, the thought or the answer holds."""
    pieces = text.split(">")
    at = rng.randrange(len(pieces))
    tail = pieces[at].rfind("<")
    pieces[at] = rng.choice(("", " ", "\n", "\u3000")) + (pieces[at][tail:] if tail >= 0 else "")
    return ">".join(pieces)


def nest(rng: random.Random, text: str) -> str:
    """Put a response inside itself."""
    at = rng.randrange(len(text) + 1)
    return text[:at] + text + text[at:]


def noise(rng: random.Random, text: str) -> str:
    """Random bytes, decoded."""
    return rng.randbytes(rng.randint(0, 80)).decode(rng.choice(("utf-8", "latin-1")), errors="replace")


def huge(rng: random.Random, text: str) -> str:
    """Rarely: a piece a few thousand times over."""
    if rng.random() < 0.99:
        return text
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice((*JUNK, "word ", "a", " ")) * rng.randint(1000, 20000) + text[at:]


MUTATIONS: tuple[Mutation, ...] = (
    delete_span, truncate, insert_junk, change_character, shuffle_lines, duplicate_line, swap_tags,
    drop_markup, empty_step, nest, noise, huge,
)  # fmt: skip


def check_valid(trace: TaggedTrace, text: str, schema: TagSchema, prefilled: bool) -> None:
    """A rendered trace parses back to itself."""
    parsed = parse(text, schema, prefilled=prefilled)
    assert parsed == Parsed(ParseStatus.OK, trace, "", 0), (text, parsed)


def check_parts(text: str, trace: TaggedTrace, parts: ResponseParts, tag: float, schema: TagSchema) -> None:
    """Constraints and spans of a well-formed response: in range, in order, at the steps' own tags."""
    assert (not violations(trace, schema)) == (tag == 1.0), text
    assert 0.0 <= parts.coverage <= 1.0 and 0.0 <= parts.sound <= 1.0 and len(parts.steps) == len(trace.steps), text
    end = 0
    for step, own in zip(parts.steps, trace.steps, strict=True):
        assert end <= step.start < step.end <= len(text), (text, step)
        piece, end = text[step.start : step.end], step.end
        assert piece.startswith(f"<{own.tag}>") and piece.endswith(f"</{own.tag}>") and own.text in piece, (text, step)
        assert -1.0 <= step.repetition <= 0.0, (text, step)
    starts = range(0, len(text), 3)
    ranges = tokens_of(starts, [(step.start, step.end) for step in parts.steps])
    assert all(0 <= first <= last <= len(starts) for first, last in ranges), text
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(ranges)), text


def check_response(text: str, rubric: Rubric, index: int) -> str:
    """Parse and score one response; return its status."""
    parsed = parse(text, rubric.schema, prefilled=rubric.prefilled)
    well_formed = parsed.status is ParseStatus.OK
    assert (parsed.trace is not None, bool(parsed.reason)) == (well_formed, not well_formed), (text, parsed)
    assert 0 <= parsed.offset <= len(text), (text, parsed)
    if parsed.trace is not None:
        again = render(parsed.trace, schema=rubric.schema, prefilled=rubric.prefilled)
        check_valid(parsed.trace, again, rubric.schema, rubric.prefilled)
    task = TASK_NAMES[index % len(TASK_NAMES)]
    status, prmu = (("scored", (index % 101) / 100), ("off", None), ("masked", None))[index % 3]
    gold = GOLDS.get(task, TEXT_GOLD)
    output = rubric.score(text, task=task, gold=gold, prmu=prmu, prmu_status=status)
    row = output.row()
    if parsed.trace is not None:
        check_parts(text, parsed.trace, output.parts, output.components["tag"], rubric.schema)
    assert tuple(row) == rubric.keys, row
    for key, value in row.items():
        if isinstance(value, float):
            assert math.isfinite(value), (text, row)
            assert LOW.get(key, 0.0) <= value <= HIGH.get(key, 1.0), (text, row)
    assert (row["parse_status"], row["prmu_status"]) == (parsed.status.value, status), row
    assert well_formed or row["task"] == row["format"] == row["tag"] == 0.0, row
    if not well_formed and any(term.name == "prmu_format" for term in rubric.terms):
        assert output.total <= 0.0, (text, row)
    if index % 16 == 0:
        plain = neutralise(text)
        assert not is_markup(plain), text
        assert (neutralise(plain), len(plain)) == (plain, len(text)), text
    return parsed.status.value


def check_stream(text: str, schema: TagSchema, prefilled: bool) -> None:
    """The response cut after every character gives the whole's thought and answer, and the parser's."""
    stream = ThoughtStream(prefilled)
    pieces = [stream.feed(character) for character in text]
    joined = "".join(piece[0] for piece in pieces), "".join(piece[1] for piece in pieces)
    assert joined == split_response(text, prefilled=prefilled), (text, joined)
    trace = parse(text, schema, prefilled=prefilled).trace
    assert trace is None or joined[1] == trace.answer, (text, joined)
    assert trace is None or parse(f"<think>{joined[0]}</think>{joined[1]}", schema).trace == trace, (text, joined)


def fuzz(job: tuple[int, int]) -> tuple[Counter[str], float, int, float]:
    """Run `(n, seed)`: counts by status, slowest check (CPU s), longest response, CPU seconds in all."""
    began = time.process_time()
    n, seed = job
    rng = random.Random(seed)
    schemas = (default_schema(), default_schema(), default_schema(), OTHER_SCHEMA)
    rubrics = {
        (schema.version, flag, gate): Rubric(schema, short_form(gate=gate), prefilled=flag)
        for schema in schemas for flag in (False, True) for gate in (False, True)
    }  # fmt: skip
    task_reward("LaMP_4", "warm", "up")  # the import of rouge_score is not a response's time
    counts: Counter[str] = Counter()
    slowest, longest = 0.0, 0
    for index in range(n):
        schema = rng.choice(schemas)
        trace = make_trace(rng, schema)
        prefilled = rng.random() < 0.25
        text = render(trace, schema=schema, prefilled=prefilled)
        if rng.random() < 0.15:
            check_valid(trace, text, schema, prefilled)
        else:
            for _ in range(1 if rng.random() < 0.7 else rng.randint(2, 4)):
                text = rng.choice(MUTATIONS)(rng, text)
        started = time.process_time()
        status = check_response(text, rubrics[schema.version, prefilled, rng.random() < 0.5], index)
        if index % 10 == 0:
            check_stream(text, schema, prefilled)
        slowest = max(slowest, time.process_time() - started)
        longest = max(longest, len(text))
        counts[status] += 1
    return counts, slowest, longest, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    share, rest = divmod(args.n, args.processes)
    jobs = [(share + (rank < rest), args.seed * 1009 + rank) for rank in range(args.processes)]
    started = time.perf_counter()
    if args.processes == 1:
        results = [fuzz(jobs[0])]
    else:
        with multiprocessing.Pool(args.processes) as pool:
            results = pool.map(fuzz, jobs)
    seconds = time.perf_counter() - started
    counts: Counter[str] = sum((result[0] for result in results), Counter())
    for status in ParseStatus:
        print(f"{status.value:18} {counts[status.value]:>9} {counts[status.value] / args.n:8.3%}")
    print(f"{args.n} responses, seed {args.seed}, {args.processes} process(es): no failure")
    cpu = sum(result[3] for result in results)
    print(f"{seconds:.1f} s, {cpu:.1f} CPU s, {args.n / cpu:.0f} responses per CPU s")
    slowest, longest = max(result[1] for result in results), max(result[2] for result in results)
    print(f"slowest check {slowest * 1e3:.1f} CPU ms, longest response {longest} characters")


if __name__ == "__main__":
    main()
