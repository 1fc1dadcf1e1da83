"""Chooses the held-out questions that the report shows, by rule and hash, never by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from tagpr_rl.report.page.read import Row, number

PER_REASON = 4
REASONS: Mapping[str, str] = {
    "improved": "a higher score with the second model",
    "worse": "a lower score with the second model",
    "still wrong": "the same score with both, below 1",
    "still right": "full score with both",
}
"""What became of a question from the first model of the pair to the second. Every question has one reason."""
MALFORMED = "malformed"
"""The second model's response does not parse; beside the question's reason."""
CHANGED = ("improved", "worse")
SHOWN = (*CHANGED, "still wrong")
"""Reasons whose questions are shown, `PER_REASON` of each."""


def choose_samples(
    responses: Mapping[str, Sequence[Row]], pair: tuple[str | None, str | None], *, per_reason: int = PER_REASON
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(samples, counts): questions that every model answered, some for each reason of `SHOWN` and one malformed.

    `responses` maps models, first to last, to their rows; `pair` names the two that are compared. Within a reason,
    tasks take turns, the widest difference of the scores comes first, and a hash of the record's id decides among
    equals: the choice is deterministic and blind to the text. A task without a sample gets one. `counts` has
    "questions", the number for each reason (they add up to it), `MALFORMED`, and "pair".
    """
    by_model = {model: {question_key(row): row for row in rows} for model, rows in responses.items() if rows}
    models = list(by_model)
    if not models:
        return [], {}
    first, last = (
        by_model[name if name in by_model else other] for name, other in zip(pair, (models[0], models[-1]), strict=True)
    )
    keys = sorted((key for key in by_model[models[0]] if all(key in rows for rows in by_model.values())), key=blind)
    change = {key: (number(last[key].get("score")) or 0.0) - (number(first[key].get("score")) or 0.0) for key in keys}
    reason_of = {key: _reason(change[key], number(last[key].get("score")) or 0.0) for key in keys}
    broken = [key for key in keys if last[key].get("parse_status", "OK") != "OK"]
    keys.sort(key=lambda key: -abs(change[key]))  # stable: among equals the hash decides
    chosen: dict[tuple[str, str], str] = {}
    for reason in SHOWN:
        fitting = [key for key in keys if reason_of[key] == reason]
        chosen |= dict.fromkeys(_take_turns(fitting)[:per_reason], reason)
    chosen |= dict.fromkeys([key for key in broken if key not in chosen][:1], MALFORMED)
    for task in sorted({task for task, _ in keys}):
        if not any(key[0] == task for key in chosen):
            key = next(key for key in keys if key[0] == task)
            chosen[key] = reason_of[key]
    reasons = list(reason_of.values())
    counts = {"questions": len(keys), **{reason: reasons.count(reason) for reason in REASONS}, MALFORMED: len(broken)}
    names = [next(name for name, rows in by_model.items() if rows is table) for table in (first, last)]
    return [_sample(key, reason, by_model) for key, reason in chosen.items()], {**counts, "pair": names}


def _reason(change: float, score: float) -> str:
    """One of REASONS."""
    if change:
        return "improved" if change > 0 else "worse"
    return "still right" if score >= 1.0 else "still wrong"


def question_key(row: Row) -> tuple[str, str]:
    """Task and record id; ids are unique only within a task."""
    return str(row.get("task", "")), str(row.get("record_id", ""))


def blind(key: Sequence[str]) -> str:
    """A hash to order by, so that what is shown does not depend on the text."""
    return hashlib.sha256("/".join(key).encode()).hexdigest()


def _take_turns(keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """One key of each task, then a second of each, and so on; the order within a task is kept."""
    seen: dict[str, int] = {}
    ranked = []
    for position, key in enumerate(keys):
        seen[key[0]] = seen.get(key[0], 0) + 1
        ranked.append((seen[key[0]], key[0], position, key))
    return [key for *_, key in sorted(ranked)]


def _sample(key: tuple[str, str], reason: str, by_model: Mapping[str, Mapping[tuple[str, str], Row]]) -> dict[str, Any]:
    rows = {model: table[key] for model, table in by_model.items()}
    last = list(rows.values())[-1]
    return {
        "record_id": key[1],
        "task": key[0],
        "user_id": last.get("user_id"),
        "reason": reason,
        "prompt": prompt_text(last.get("prompt")),
        "gold": last.get("gold"),
        "responses": {
            model: {
                "response": str(row.get("response", "")),
                "answer": row.get("answer"),
                "score": number(row.get("score")),
                "parse_status": row.get("parse_status"),
                # A model trained to answer directly is asked without the tag instruction.
                "prompt": None if row.get("prompt") == last.get("prompt") else prompt_text(row.get("prompt")),
            }
            for model, row in rows.items()
        },
    }


def prompt_text(prompt: Any) -> str:
    """A prompt as text: as it is, or the contents of its chat messages, one after the other."""
    if isinstance(prompt, list):
        return "\n\n".join(str(m.get("content", "")) if isinstance(m, dict) else str(m) for m in prompt)
    return "" if prompt is None else str(prompt)
