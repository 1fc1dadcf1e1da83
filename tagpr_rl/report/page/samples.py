"""Chooses the held-out questions that the report shows, by rule and hash, never by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from tagpr_rl.report.page.read import Row, number

PER_REASON = 4
REASONS: Mapping[str, str] = {
    "improved": "wrong with the first model, better with the last",
    "worse": "better with the first model than with the last",
    "still wrong": "below full score with both, no better with the last",
    "malformed": "the last model's response does not parse",
    "example": "so that every task is shown",
}


def choose_samples(
    responses: Mapping[str, Sequence[Row]], *, per_reason: int = PER_REASON
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """(samples, counts): questions that every model answered, some for each of `REASONS`.

    `responses` maps models, first to last, to their rows. Within a reason, tasks take turns and a hash of
    the record's id decides, so the choice is deterministic and blind to the text. Questions are keyed by
    task and record id, since ids are unique only within a task. `counts` holds how many questions each reason
    fits ("example" excepted) and "questions", the number compared.
    """
    models = [name for name, rows in responses.items() if rows]
    by_model = {model: {question_key(row): row for row in responses[model]} for model in models}
    if not models:
        return [], {}
    keys = [key for key in by_model[models[0]] if all(key in by_model[model] for model in models)]
    keys.sort(key=blind)
    first, last = by_model[models[0]], by_model[models[-1]]
    fits: dict[str, list[tuple[str, str]]] = {reason: [] for reason in REASONS if reason != "example"}
    for key in keys:
        before, after = number(first[key].get("score")), number(last[key].get("score"))
        if before is not None and after is not None:
            if after > before:
                fits["improved"].append(key)
            elif after < before:
                fits["worse"].append(key)
            elif after < 1.0:
                fits["still wrong"].append(key)
        if last[key].get("parse_status", "OK") != "OK":
            fits["malformed"].append(key)
    chosen: dict[tuple[str, str], str] = {}
    for reason, fitting in fits.items():
        fresh = [key for key in fitting if key not in chosen]
        for key in _take_turns(fresh)[: 1 if reason == "malformed" else per_reason]:
            chosen[key] = reason
    for task in sorted({task for task, _ in keys}):
        if not any(key[0] == task for key in chosen):
            chosen[next(key for key in keys if key[0] == task)] = "example"
    counts = {"questions": len(keys), **{reason: len(fitting) for reason, fitting in fits.items()}}
    return [_sample(key, reason, by_model) for key, reason in chosen.items()], counts


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
