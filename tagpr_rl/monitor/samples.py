"""Which of a step's responses are kept on disk, and which are shown: best, worst, malformed and random ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tagpr_rl.reward.components import TOTAL, Term, component_names, contributions

_FIRST = ("kind", "step", "task", "record_id", "user_id", "group", "sample")
_LAST = (
    "weighted", "advantage", "parse_status", "prmu_status", "prmu_reason", "tag_parts", "prompt", "response", "gold",
)  # fmt: skip


def columns(components: Sequence[str]) -> tuple[str, ...]:
    """Columns of the table of samples in a stage with these reward components."""
    return (*_FIRST, *(f"reward_{name}" for name in (TOTAL, *components)), *_LAST)


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

    The malformed are drawn first, since the worst are often malformed. A kind may have fewer.
    """
    order = list(range(len(lines)))
    random.Random(seed).shuffle(order)
    left = dict.fromkeys(order)
    chosen: dict[str, list[int]] = {}

    def take(kind: str, indices: Sequence[int]) -> None:
        chosen[kind] = list(indices[:per_kind])
        for index in chosen[kind]:
            del left[index]

    take("malformed", [i for i in left if lines[i]["parse_status"] != "OK"])
    take("best", sorted(left, key=lambda i: -lines[i]["reward_total"]))
    take("worst", sorted(left, key=lambda i: lines[i]["reward_total"]))
    take("random", list(left))
    return [(kind, lines[i]) for kind in ("best", "worst", "malformed", "random") for i in chosen[kind]]


def table_row(kind: str, line: dict[str, Any], terms: Sequence[Term]) -> list[Any]:
    """One response under `columns`; `weighted` says what each term added to the reward."""
    names = component_names(terms)
    added = contributions(terms, {name: line[f"reward_{name}"] for name in names})
    texts = {
        "kind": kind,
        "weighted": " ".join(f"{name} {value:+.4f}" for name, value in added.items()),
        "tag_parts": " ".join(f"{name} {value:.3f}" for name, value in (line.get("tag_parts") or {}).items()),
    }
    return [texts.get(column, line.get(column)) for column in columns(names)]
