"""Which of a step's responses are kept, and which are shown: the best, the worst, malformed ones, some at random."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

COMPONENTS = ("task", "format", "tag", "prmu", "repetition")
COLUMNS = (
    "kind", "step", "task", "record_id", "user_id", "group", "sample", "reward_total",
    *(f"reward_{name}" for name in COMPONENTS), "weighted", "advantage", "parse_status", "prmu_status", "prmu_reason",
    "tag_parts", "prompt", "response", "gold",
)  # fmt: skip


def kept(lines: Sequence[dict[str, Any]], limit: int | None, seed: int) -> list[dict[str, Any]]:
    """Whole groups, drawn at random until `limit` responses are reached and at least one; all with None."""
    groups = list(dict.fromkeys(line["group"] for line in lines))
    if limit is None or not groups:
        return list(lines)
    sizes = {group: sum(line["group"] == group for line in lines) for group in groups}
    random.Random(seed).shuffle(groups)
    chosen = {groups[0]}
    left = limit - sizes[groups[0]]
    for group in groups[1:]:
        if sizes[group] <= left:
            chosen.add(group)
            left -= sizes[group]
    return [line for line in lines if line["group"] in chosen]


def shown(lines: Sequence[dict[str, Any]], per_kind: int, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """(kind, line): `per_kind` each of best and worst by total reward, malformed, and random; none twice.

    The malformed are drawn first, since the worst are often malformed; fewer where there are not so many.
    """
    order = list(range(len(lines)))
    random.Random(seed).shuffle(order)
    left = dict.fromkeys(order)
    found: dict[str, list[int]] = {}

    def take(kind: str, indices: Sequence[int]) -> None:
        found[kind] = list(indices[:per_kind])
        for index in found[kind]:
            del left[index]

    take("malformed", [i for i in left if lines[i]["parse_status"] != "OK"])
    take("best", sorted(left, key=lambda i: -lines[i]["reward_total"]))
    take("worst", sorted(left, key=lambda i: lines[i]["reward_total"]))
    take("random", list(left))
    return [(kind, lines[i]) for kind in ("best", "worst", "malformed", "random") for i in found[kind]]


def table_row(kind: str, line: dict[str, Any]) -> list[Any]:
    """One response under COLUMNS; `weighted` says what each component added to the reward."""
    weights = line["weights"]
    parts = {
        "task": line["reward_task"] * line["reward_format"],
        "tag": weights["alpha"] * line["reward_tag"],
        "prmu": weights["beta"] * line["reward_prmu"],
        "repetition": weights["gamma"] * line["reward_repetition"],
    }
    text = {
        "kind": kind,
        "weighted": " ".join(f"{name} {value:+.4f}" for name, value in parts.items()),
        "tag_parts": " ".join(f"{name} {value:.3f}" for name, value in (line.get("tag_parts") or {}).items()),
    }
    return [text.get(column, line.get(column)) for column in COLUMNS]
