"""Pairs that probe what PRMU must not reward: a repeated step, a copied profile, an answer against its thought, a fault
of form.

Training uses them as additional pairs (recipe keys probe_fraction, slip_fraction and malformed_fraction of a prmu
stage). Evaluation measures all but the slips on users that training never shows. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from tagpr_rl.eval.metrics import task_mean
from tagpr_rl.prmu.accuracy import RawScore, mean, wins
from tagpr_rl.prmu.serving.requests import request_for
from tagpr_rl.prmu.training.preferences import COPIED, MALFORMED, PADDED, SLIPPED
from tagpr_rl.prompts.prompt import clean
from tagpr_rl.tags.grammar import parse, render
from tagpr_rl.tags.schema import THINK, TagSchema
from tagpr_rl.types import PairRow, ParseStatus, Step, TaggedTrace

COPIED_ITEMS = 4


def copied(pair: PairRow, schema: TagSchema, prefilled: bool = False) -> PairRow | None:
    """`chosen` against a thought that copies the user's own items and ends in the answer of `rejected`.

    None if the profile has no items or `rejected` is not well formed.
    """
    trace = parse(pair.rejected, schema, prefilled=prefilled).trace
    items = [text for item in pair.profile_texts[:COPIED_ITEMS] if (text := " ".join(clean(item).split()))]
    if trace is None or not items:
        return None
    copy = TaggedTrace(tuple(Step(schema.names[0], text) for text in items), trace.answer)
    return _against(pair, _form(pair, copy, schema), COPIED)


def padded(pair: PairRow, schema: TagSchema, prefilled: bool = False) -> PairRow | None:
    """`chosen` against itself with its longest step written twice; None if `chosen` is not well formed."""
    trace = parse(pair.chosen, schema, prefilled=prefilled).trace
    if trace is None:
        return None
    index = max(range(len(trace.steps)), key=lambda i: len(trace.steps[i].text))
    steps = (*trace.steps[: index + 1], *trace.steps[index:])
    return _against(pair, _form(pair, replace(trace, steps=steps), schema), PADDED)


def slipped(pair: PairRow, schema: TagSchema, prefilled: bool = False, *, late: bool) -> PairRow | None:
    """`chosen` against itself with the answer of `rejected`; with `late`, also with its last step.

    Policies make this mistake: the thought is right and the answer does not follow from it. None if a response is not
    well formed, or if the result equals `chosen` or `rejected`.
    """
    right = parse(pair.chosen, schema, prefilled=prefilled).trace
    wrong = parse(pair.rejected, schema, prefilled=prefilled).trace
    if right is None or wrong is None or right.answer == wrong.answer:
        return None
    steps = (*right.steps[:-1], wrong.steps[-1]) if late else right.steps
    text = _form(pair, TaggedTrace(steps, wrong.answer), schema)
    return None if text == pair.rejected else _against(pair, text, SLIPPED)


Spoil = Callable[[str, TaggedTrace, Random], str]
"""(a well-formed response, its trace, random numbers) -> a malformed version of it."""


def _cut(text: str, trace: TaggedTrace, rng: Random) -> str:
    """The token limit came inside a step."""
    step = rng.choice(trace.steps)
    start = text.index(f"<{step.tag}>{step.text}") + len(f"<{step.tag}>")
    return text[: start + rng.randint(1, len(step.text))]


def _unclosed_step(text: str, trace: TaggedTrace, rng: Random) -> str:
    closing = f"</{rng.choice(trace.steps).tag}>"
    return text.replace(closing, "", 1)


def _unclosed_thought(text: str, trace: TaggedTrace, rng: Random) -> str:
    return text.replace(f"</{THINK}>", "", 1)


def _no_answer(text: str, trace: TaggedTrace, rng: Random) -> str:
    return text[: text.index(f"</{THINK}>")] + f"</{THINK}>"


def _no_thought(text: str, trace: TaggedTrace, rng: Random) -> str:
    return trace.answer


def _text_outside(text: str, trace: TaggedTrace, rng: Random) -> str:
    """One step lost its tags."""
    step = rng.choice(trace.steps)
    return text.replace(f"<{step.tag}>{step.text}</{step.tag}>", step.text, 1)


def _nested(text: str, trace: TaggedTrace, rng: Random) -> str:
    """A second opening tag stands inside a step."""
    step = rng.choice(trace.steps)
    return text.replace(f"<{step.tag}>", f"<{step.tag}><{rng.choice(trace.steps).tag}>", 1)


def _unknown_tag(text: str, trace: TaggedTrace, rng: Random) -> str:
    """One step has a tag that no schema can have."""
    step = rng.choice(trace.steps)
    bad = THINK.capitalize()
    return text.replace(f"<{step.tag}>{step.text}</{step.tag}>", f"<{bad}>{step.text}</{bad}>", 1)


SPOILS: tuple[Spoil, ...] = (
    _cut, _unclosed_step, _unclosed_thought, _no_answer, _no_thought, _text_outside, _nested, _unknown_tag,
)  # fmt: skip


def malformed(pair: PairRow, schema: TagSchema, prefilled: bool, number: int) -> PairRow | None:
    """`chosen` against itself with a fault of form; None if `chosen` is not well formed.

    `number` (a running number) chooses the kind of fault from SPOILS, each as often as the others.
    """
    trace = parse(pair.chosen, schema, prefilled=prefilled).trace
    if trace is None:
        return None
    spoil = SPOILS[number % len(SPOILS)]
    text = spoil(_form(pair, trace, schema), trace, Random(f"{number}/{pair.record_id}"))
    assert parse(text, schema, prefilled=prefilled).status is not ParseStatus.OK, (spoil, text)
    return _against(pair, text, MALFORMED)


def _form(pair: PairRow, trace: TaggedTrace, schema: TagSchema) -> str:
    """The trace as a response that begins as `chosen` does, so that PRMU cannot tell the two by their first tag."""
    return render(trace, schema=schema, prefilled=not pair.chosen.lstrip().startswith(f"<{THINK}>"))


def _against(pair: PairRow, rejected: str, kind: str) -> PairRow:
    return replace(pair, rejected=rejected, kind=kind, other_user_id="")


def padding(raw: RawScore, pairs: Sequence[PairRow], schema: TagSchema, prefilled: bool = False) -> dict[str, Any]:
    """Each chosen response against itself with its longest step repeated.

    "raised": share of responses whose score rises [mean, low, high]; "change": mean change of the raw score, in
    standard deviations of the chosen responses' raw scores.
    """
    probes = [row for pair in pairs if (row := padded(pair, schema, prefilled)) is not None]
    if not probes:
        return {"responses": 0}
    before = raw([request_for(row, row.chosen) for row in probes])
    after = raw([request_for(row, row.rejected) for row in probes])
    centre = mean(before)
    spread = max(mean([(score - centre) ** 2 for score in before]) ** 0.5, 1e-6)
    changes = [(b - a) / spread for a, b in zip(before, after, strict=True)]
    return {"responses": len(probes), "raised": _interval(wins(after, before), probes), "change": mean(changes)}


def copying(raw: RawScore, pairs: Sequence[PairRow], schema: TagSchema, prefilled: bool = False) -> dict[str, Any]:
    """Each chosen response against a thought that copies the user's own items and ends in the wrong answer.

    "chosen_above": share of pairs in which the chosen response scores higher [mean, low, high].
    """
    return _chosen_above(raw, [copied(pair, schema, prefilled) for pair in pairs])


def spoiling(raw: RawScore, pairs: Sequence[PairRow], schema: TagSchema, prefilled: bool = False) -> dict[str, Any]:
    """Each chosen response against itself with a fault of form.

    "chosen_above": share of pairs in which the chosen response scores higher [mean, low, high].
    """
    return _chosen_above(raw, [malformed(pair, schema, prefilled, i) for i, pair in enumerate(pairs)])


def _chosen_above(raw: RawScore, pairs: Sequence[PairRow | None]) -> dict[str, Any]:
    probes = [pair for pair in pairs if pair is not None]
    if not probes:
        return {"pairs": 0}
    won = wins(
        raw([request_for(row, row.chosen) for row in probes]), raw([request_for(row, row.rejected) for row in probes])
    )
    return {"pairs": len(probes), "chosen_above": _interval(won, probes)}


def _interval(values: Sequence[float], pairs: Sequence[PairRow]) -> list[float]:
    return list(task_mean(values, ["all"] * len(values), [pair.user_id for pair in pairs]))
