"""Rewards and advantages of saved responses, recomputed from their texts and compared with what was saved.

Every response is parsed and scored again, and its credit comes from the code that the trainer's hook calls
(`update.credit_batch`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagpr_rl.reward.components import TOTAL
from tagpr_rl.reward.response import ResponseParts
from tagpr_rl.reward.rubric import Rubric
from tagpr_rl.reward.update import AdvantageRules, Credit, credit_batch
from tagpr_rl.types import TagprError

TOLERANCE, TOLERANCE_RESCORED = 1e-6, 1e-4
"""Second: PRMU's scores depend by float32 rounding on what shares a batch, and groups of near-equal rewards magnify
the difference."""
_NEEDED = ("record_id", "task", "sample", "response", "gold", "advantage", "prmu_status", "parse_status")

Line = Mapping[str, Any]
"""A line of `rollouts/step_*.jsonl`."""


@dataclass(frozen=True, slots=True)
class Recomputed:
    """The reward row and credit of one response, computed again."""

    row: Mapping[str, Any]
    parts: ResponseParts
    credit: Credit


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one column of a step's lines is from the recomputed values."""

    column: str
    responses: int
    largest: float
    """Absolute; 1 per response if the column is a word."""
    beyond: int
    """Responses further off than the tolerance."""
    where: str
    """Task, record and sample of the largest difference."""


def step_files(folder: Path, step: int | None) -> list[tuple[int, Path]]:
    """(step, file) of a stage's saved responses. TagprError if there are none, or none of `step`."""
    files = sorted((int(file.stem.removeprefix("step_")), file) for file in folder.glob("step_*.jsonl"))
    chosen = [item for item in files if step is None or item[0] == step]
    if not chosen:
        steps = f"of step {step}; saved steps: {', '.join(str(n) for n, _ in files) or 'none'}" if step else ""
        raise TagprError(f"{folder} holds no saved responses {steps}".rstrip())
    return chosen


def reward_columns(rubric: Rubric) -> dict[str, str]:
    """Column of a line -> key of a reward row: the total and every component."""
    return {f"reward_{name}": name for name in (TOTAL, *(component.name for component in rubric.components))}


def read_lines(file: Path, rubric: Rubric) -> list[dict[str, Any]]:
    """The lines of a step. TagprError that names a line which is cut, or lacks a column of the stage's reward."""
    lines = []
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            missing = [key for key in (*_NEEDED, *reward_columns(rubric)) if key not in line]
        except (json.JSONDecodeError, TypeError) as error:
            raise TagprError(f"{file}, line {number}: no JSON object ({error}); the file was changed or cut") from None
        if missing:
            raise TagprError(f"{file}, line {number}: {', '.join(missing)} missing; this is no file of saved responses")
        lines.append(line)
    return lines


def recompute(
    rubric: Rubric, rules: AdvantageRules, lines: Sequence[Line], scores: Sequence[float] | None = None
) -> list[Recomputed]:
    """Rewards and credit of one step's responses, in the lines' order; `scores` replace PRMU's saved ones."""
    outputs = []
    for i, line in enumerate(lines):
        saved = line["reward_prmu"] if scores is None else scores[i]
        status = line["prmu_status"]
        facts = {"task": line["task"], "gold": line["gold"], "prmu_status": status}
        outputs.append(rubric.score(line["response"], prmu=saved if status == "scored" else None, **facts))
    rows = [output.row() for output in outputs]
    parts = [output.parts for output in outputs]
    credits: list[Credit] = [Credit()] * len(lines)
    for update in sorted({line.get("update", 0) for line in lines}):  # advantages are those of one update
        at = [i for i, line in enumerate(lines) if line.get("update", 0) == update]
        groups = [str(lines[i].get("group") or f"{lines[i]['task']}/{lines[i]['record_id']}") for i in at]
        batch = credit_batch([rows[i] for i in at], groups, [parts[i] for i in at], rules)
        for i, credit in zip(at, batch, strict=True):
            credits[i] = credit
    return [Recomputed(*item) for item in zip(rows, parts, credits, strict=True)]


def compare(
    lines: Sequence[Line], again: Sequence[Recomputed], rubric: Rubric, tolerance: float = TOLERANCE
) -> list[Difference]:
    """One `Difference` per column: reward components, statuses, advantages, step credit, who took part."""
    rewards = reward_columns(rubric)
    distances: dict[str, list[float]] = {
        name: [] for name in (*rewards, "parse_status", "advantage", "step_credit", "masked")
    }
    for line, new in zip(lines, again, strict=True):
        for column, name in rewards.items():
            distances[column].append(abs(line[column] - new.row[name]))
        distances["parse_status"].append(float(line["parse_status"] != new.row["parse_status"]))
        distances["advantage"].append(abs(line["advantage"] - new.credit.advantage))
        distances["step_credit"].append(_step_difference(line.get("step_credit") or (), new))
        distances["masked"].append(float(line.get("why", "") != new.credit.why))
    return [_difference(column, values, lines, tolerance) for column, values in distances.items()]


def _difference(column: str, values: Sequence[float], lines: Sequence[Line], tolerance: float) -> Difference:
    if not values:
        return Difference(column, 0, 0.0, 0, "")
    worst = max(range(len(values)), key=values.__getitem__)
    place = "/".join(str(lines[worst][key]) for key in ("task", "record_id", "sample"))
    beyond = sum(not value <= tolerance for value in values)  # NaN counts
    return Difference(column, len(values), values[worst], beyond, place)


def _step_difference(saved: Sequence[Mapping[str, Any]], new: Recomputed) -> float:
    """The largest difference of a step's advantage; 1 or more if the steps are not the same ones."""
    own = new.credit.steps
    if any(not 0 <= item["step"] < len(own) or item["tag"] != new.parts.steps[item["step"]].tag for item in saved):
        return 1.0
    if len(saved) != len(own) and any(own):
        return 1.0
    return max((abs(item["advantage"] - own[item["step"]]) for item in saved), default=0.0)
