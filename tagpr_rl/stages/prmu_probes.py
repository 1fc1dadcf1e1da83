"""Probes of what PRMU must not reward: a step said twice, and a thought that only copies the profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tagpr_rl.data.prompt import clean
from tagpr_rl.eval.metrics import task_mean
from tagpr_rl.prmu.evaluate import RawScore, mean, wins
from tagpr_rl.prmu.pairs import PairRow
from tagpr_rl.tags.grammar import parse, render
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import Step, TaggedTrace

COPIED_ITEMS = 4


def padding(raw: RawScore, pairs: Sequence[PairRow], schema: TagSchema, prefilled: bool) -> dict[str, Any]:
    """Each chosen response against itself with its longest step written twice.

    "raised": share of responses whose score rises [mean, low, high]; "change": mean change of the raw score, in
    standard deviations of the chosen responses' raw scores.
    """
    asked, longer = [], []
    for pair in pairs:
        trace = parse(pair.chosen, schema, prefilled=prefilled).trace
        if trace is None:
            continue
        index = max(range(len(trace.steps)), key=lambda i: len(trace.steps[i].text))
        steps = (*trace.steps[: index + 1], *trace.steps[index:])
        text = render(replace(trace, steps=steps), schema=schema, prefilled=prefilled)
        asked.append(pair)
        longer.append(pair.request(text))
    if not asked:
        return {"responses": 0}
    before, after = raw([pair.request(pair.chosen) for pair in asked]), raw(longer)
    centre = mean(before)
    spread = max(mean([(score - centre) ** 2 for score in before]) ** 0.5, 1e-6)
    changes = [(b - a) / spread for a, b in zip(before, after, strict=True)]
    return {
        "responses": len(asked),
        "raised": _interval(wins(after, before), asked),
        "change": mean(changes),
    }


def copying(raw: RawScore, pairs: Sequence[PairRow], schema: TagSchema, prefilled: bool) -> dict[str, Any]:
    """Each chosen response against a thought that copies the user's own items and ends in the wrong answer.

    "chosen_above": share of pairs in which the chosen response scores higher [mean, low, high].
    """
    tag = schema.names[0]
    asked, copies = [], []
    for pair in pairs:
        trace = parse(pair.rejected, schema, prefilled=prefilled).trace
        items = [text for item in pair.profile_texts[:COPIED_ITEMS] if (text := " ".join(clean(item).split()))]
        if trace is None or not items:
            continue
        copy = TaggedTrace(tuple(Step(tag, text) for text in items), trace.answer)
        asked.append(pair)
        copies.append(pair.request(render(copy, schema=schema, prefilled=prefilled)))
    if not asked:
        return {"pairs": 0}
    won = wins(raw([pair.request(pair.chosen) for pair in asked]), raw(copies))
    return {"pairs": len(asked), "chosen_above": _interval(won, asked)}


def _interval(values: Sequence[float], pairs: Sequence[PairRow]) -> list[float]:
    return list(task_mean(values, ["all"] * len(values), [pair.user_id for pair in pairs]))
