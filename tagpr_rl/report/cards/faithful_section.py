"""What `launch.py faithful` measured, as the run's report shows it: does the answer follow thought and profile?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tagpr_rl.report.charts.plots import ForestChart, forest_chart
from tagpr_rl.report.page.read import number, read_object
from tagpr_rl.run.layout import RunDir

FOLDER = "faithful"
MEANINGS: Mapping[str, str] = {
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
Interval = tuple[float | None, float | None, float | None]


@dataclass(frozen=True, slots=True)
class AlterationRow:
    """One row: what was altered, and what the answers did."""

    name: str
    meaning: str
    n: int | None
    changed: Interval
    """Share of answers that changed, with its interval over users."""
    score: Interval
    score_change: Interval


@dataclass(frozen=True, slots=True)
class Faithful:
    """One stage's test."""

    stage: str
    questions: str
    rows: tuple[AlterationRow, ...]
    forest: ForestChart


def faithful_tests(run: RunDir) -> list[Faithful]:
    """The tests in the run's folder `faithful`, by file name. TagprError for a broken file."""
    folder = run.root / FOLDER
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        facts = read_object(path)
        if facts is None or not isinstance(facts.get("alterations"), dict):
            continue
        rows = [_row(name, MEANINGS.get(name, ""), raw) for name, raw in facts["alterations"].items()]
        rows += [_row(f"drop_step: {tag}", "", raw) for tag, raw in (facts.get("tags") or {}).items()]
        forest = forest_chart(
            "share of answers that changed", [(row.name, "model", *row.changed) for row in rows], [],
            width=480, label_width=max((6.2 * len(row.name) + 14 for row in rows), default=84.0),
        )  # fmt: skip
        questions = f"{facts.get('well_formed', '-')} of {facts.get('questions', '-')}"
        found.append(Faithful(str(facts.get("stage", path.stem)), questions, tuple(rows), forest))
    return found


def _row(name: str, meaning: str, raw: Mapping[str, Any]) -> AlterationRow:
    n = number(raw.get("n"))
    changed, score, change = (_three(raw.get(key)) for key in ("changed", "score", "score_change"))
    return AlterationRow(name, meaning, None if n is None else int(n), changed, score, change)


def _three(raw: Any) -> Interval:
    values = [number(value) for value in raw] if isinstance(raw, list) else []
    return (values[0], values[1], values[2]) if len(values) == 3 else (None, None, None)
