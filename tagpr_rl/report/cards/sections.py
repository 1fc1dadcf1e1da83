"""Two sections of a run's report: its chains, and its tests whether answers follow from thought and profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tagpr_rl.report.charts.plots import ForestChart, forest_chart
from tagpr_rl.report.page.names import PAIR_KINDS, words
from tagpr_rl.report.page.read import Interval, Row, interval, number, read_object
from tagpr_rl.run.layout import RunDir
from tagpr_rl.tags.schema import TagSchema

REASONS: Mapping[str, str] = {
    "NOT_ASKED": "the budget was spent before the teacher was asked",
    "TEACHER_FAILED": "the teacher did not answer, after every retry",
    "TEACHER_REFUSED": "the teacher's endpoint rejects the request",
    "TEACHER_EMPTY": "an empty answer",
    "TEACHER_CUT": "stopped by the token limit",
    "NO_ANSWER": "no thought, or no answer line",
    "TOO_FEW_STEPS": "fewer steps than the recipe asks for",
    "REASSEMBLY": "the steps joined are not the thought, byte by byte",
    "NOT_LABELLED": "the budget was spent before the labeller was asked",
    "LABELLER_FAILED": "the labeller gave no whole answer",
    "BAD_LABELS": "not JSON, an index missing or twice, or a tag that is not in the schema",
    "LABELS_DISAGREE": "two labellings differ",
    "UNPARSABLE": "the response does not parse back to itself",
    "LOW_TAG_SCORE": "the tags break the schema's constraints",
    "NO_GOLD": "the question has no gold answer to judge by",
    "WRONG_ANSWER": "the answer is wrong",
    "NOT_BETTER": "no better than the same teacher without the profile",
    "NO_BASELINE": "the answer without the profile did not come",
    "NO_EVIDENCE": "the chain does not use this user's profile",
    "DUPLICATE": "the same response to the same question again",
    "NEAR_DUPLICATE": "nearly the thought of an earlier chain with the same answer",
    "NOT_BALANCED": "its task, user or tag sequence had its share",
}


def chains_view(report: Row) -> dict[str, Any] | None:
    """The data of chains.html.j2; None without chains.json. A key that an older file lacks is left out."""
    chains = report["chains"]
    if not chains:
        return None
    by_tag = (chains.get("agreement") or {}).get("by_tag") or {}
    coverage = chains.get("coverage") or {}
    return {
        "asked": chains.get("asked"),
        "kept": chains.get("kept"),
        "kept_wrong": chains.get("kept_wrong"),
        "reasons": [
            {"reason": reason, "n": n, "meaning": REASONS.get(reason, "")}
            for reason, n in (chains.get("rejected") or {}).items()
        ],
        "kappa": number(chains.get("kappa")),
        "deterministic": bool((chains.get("labeller") or {}).get("deterministic")),
        "steps": list((chains.get("steps_per_chain") or {}).items()),
        "pairs": [(n, PAIR_KINDS.get(kind, words(kind))) for kind, n in (chains.get("pairs") or {}).items()],
        "sources": [{"role": role, **chains[role]} for role in ("teacher", "labeller") if chains.get(role)],
        "tags": [
            {
                "name": name,
                "steps": n,
                "coverage": number(coverage.get(name)),
                "percent": round(100 * (number(coverage.get(name)) or 0.0), 1),
                "kappa": number(by_tag.get(name)),
            }
            for name, n in (chains.get("tags") or {}).items()
        ],
        "evidence": chains.get("evidence") or None,
    }


def untaught_tags(report: Row, schema: TagSchema) -> list[str]:
    """Tags of the schema that no kept chain has; [] without chains."""
    counts = (report["chains"] or {}).get("tags") or {}
    return [name for name in schema.names if not counts.get(name)] if any(counts.values()) else []


def prompt_table(prompts: Row) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(splits, rows of (figure in words, one number per split)) of prompts.json."""
    splits = {name: values for name, values in prompts.items() if isinstance(values, dict)}
    keys = dict.fromkeys(key for values in splits.values() for key in values)
    cell = {
        name: {key: f"{n:,}" if isinstance(n, int) else str(n) for key, n in v.items()} for name, v in splits.items()
    }
    rows = [(words(key), [cell[name].get(key, "-") for name in splits]) for key in keys]
    return [words(name) for name in splits], rows


FOLDER = "faithful"
"""Folder of a run with the results of its faithfulness tests."""
ALTERATIONS: Mapping[str, str] = {
    "unchanged": "nothing altered: how often the answer changes by itself",
    "drop_all": "no step is left",
    "drop_step": "one step less, once for each step",
    "shuffle_steps": "the steps in another order",
    "other_thought": "the thought of another user's question",
    "profile_first_dropped": "the profile without its first item; thought anew",
    "profile_dropped": "no profile; thought anew",
    "profile_swapped": "another user's profile; thought anew",
    "profile_first_dropped_same_thought": "the profile without its first item, the old thought",
    "profile_dropped_same_thought": "no profile, the old thought",
    "profile_swapped_same_thought": "another user's profile, the old thought",
}


@dataclass(frozen=True, slots=True)
class AlterationRow:
    """One row: an alteration and its effect on the answers."""

    name: str
    meaning: str
    n: int | None
    changed: Interval
    """Share of the answers that changed, with its interval over users."""
    score: Interval
    score_change: Interval


@dataclass(frozen=True, slots=True)
class FaithfulnessTest:
    """The test of one stage."""

    stage: str
    questions: str
    rows: tuple[AlterationRow, ...]
    forest: ForestChart


def faithful_tests(run: RunDir) -> list[FaithfulnessTest]:
    """The tests in the run's folder `faithful`, by file name. TagprError if a file is broken."""
    folder = run.root / FOLDER
    tests = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        facts = read_object(path)
        if facts is None or not isinstance(facts.get("alterations"), dict):
            continue
        rows = [_row(name, ALTERATIONS.get(name, ""), raw) for name, raw in facts["alterations"].items()]
        rows += [_row(f"drop_step: {tag}", "", raw) for tag, raw in (facts.get("tags") or {}).items()]
        forest = forest_chart(
            "share of answers that changed", [(row.name, "model", *row.changed) for row in rows], [],
            width=480, label_width=max((6.2 * len(row.name) + 14 for row in rows), default=84.0),
        )  # fmt: skip
        questions = f"{facts.get('well_formed', '-')} of {facts.get('questions', '-')}"
        tests.append(FaithfulnessTest(str(facts.get("stage", path.stem)), questions, tuple(rows), forest))
    return tests


def _row(name: str, meaning: str, raw: Mapping[str, Any]) -> AlterationRow:
    n = number(raw.get("n"))
    changed, score, change = (interval(raw.get(key)) for key in ("changed", "score", "score_change"))
    return AlterationRow(name, meaning, None if n is None else int(n), changed, score, change)
