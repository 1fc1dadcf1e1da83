"""Alerts: pure rules over a stage's metrics rows. Each alert is raised once, until it clears."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tagpr_rl.config.rules import AlertLimits

ALERTS = "alerts.jsonl"
"""In a stage's folder: one alert a line."""
Row = Mapping[str, float]
_KEYS = (
    "reward/prmu/mean", "reward/task/mean", "actor/entropy", "actor/entropy_loss", "prmu/masked_fraction",
    "training/rollout_probs_diff_max", "groups/zero_variance_fraction", "parse/OK",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert, as a line of `alerts.jsonl`."""

    step: int
    kind: str
    value: float
    limit: float
    text: str


def malformed_share(row: Row) -> float | None:
    """Share of a step's responses that did not parse; None if the row counts no statuses."""
    if not any(key.startswith("parse/") for key in row):
        return None
    return round(1.0 - row.get("parse/OK", 0.0), 9)


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, or None if a value is missing."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if values and len(present) == len(values) else None


def _last(rows: Sequence[Row], window: int, value: Callable[[Row], float | None], back: int = 0) -> float | None:
    """The mean of `value` over the last `window` rows, or those `back` windows earlier; None if there are fewer."""
    end = len(rows) - back * window
    return _mean([value(row) for row in rows[end - window : end]]) if end >= window else None


def _prmu_up_task_down(rows: Sequence[Row], limits: AlertLimits) -> tuple[float, float, str] | None:
    if limits.prmu_rise is None:
        return None
    now, before = (
        [_last(rows, limits.window, lambda row, key=key: row.get(key), back) for key in _KEYS[:2]]  # type: ignore[misc]
        for back in (0, 1)
    )
    if None in (*now, *before):
        return None
    rise, fall = now[0] - before[0], before[1] - now[1]  # type: ignore[operator]
    if rise <= limits.prmu_rise or fall <= limits.task_fall:
        return None
    text = (
        f"PRMU's score rose by {rise:.3f} while the task score fell by {fall:.3f} (means of {limits.window} steps "
        f"against the {limits.window} before; limits {limits.prmu_rise:g} and {limits.task_fall:g}): the policy may be "
        "gaming PRMU; lower PRMU's weight or look at the rollouts"
    )
    return fall, limits.task_fall, text


def _entropy(row: Row) -> float | None:
    return row.get("actor/entropy", row.get("actor/entropy_loss"))


def _entropy_collapse(rows: Sequence[Row], limits: AlertLimits) -> tuple[float, float, str] | None:
    window = limits.window
    if limits.entropy_fraction is None or len(rows) < 2 * window:
        return None
    first, now = _mean([_entropy(row) for row in rows[:window]]), _last(rows, window, _entropy)
    if first is None or now is None or first <= 0 or now >= limits.entropy_fraction * first:
        return None
    text = (
        f"entropy fell to {now:.4g}, from {first:.4g} in the first {window} steps "
        f"(limit {limits.entropy_fraction:g} of it): the policy says the same thing again and again"
    )
    return now / first, limits.entropy_fraction, text


def _malformed(rows: Sequence[Row], limits: AlertLimits) -> tuple[float, float, str] | None:
    share = _last(rows, limits.window, malformed_share)
    if limits.malformed is None or share is None or share <= limits.malformed:
        return None
    text = f"{share:.0%} of the last {limits.window} steps' responses do not parse (limit {limits.malformed:.0%})"
    return share, limits.malformed, text


def _masked(rows: Sequence[Row], limits: AlertLimits) -> tuple[float, float, str] | None:
    share = rows[-1].get("prmu/masked_fraction", 0.0)
    if limits.masked is None or share <= limits.masked:
        return None
    text = f"{share:.1%} of the step's responses have no PRMU score (limit {limits.masked:.1%}): time-outs or faults"
    return share, limits.masked, text


def _probability_gap(rows: Sequence[Row], limits: AlertLimits) -> tuple[float, float, str] | None:
    gap = rows[-1].get("training/rollout_probs_diff_max")
    if limits.probability_gap is None or gap is None or gap <= limits.probability_gap:
        return None
    text = (
        f"a token's probability in the rollout and in the actor differ by {gap:.3g} (limit "
        f"{limits.probability_gap:g}): weights out of step, or engines that compute differently"
    )
    return gap, limits.probability_gap, text


def _flat_groups(rows: Sequence[Row], limits: AlertLimits) -> tuple[float, float, str] | None:
    share = _last(rows, limits.window, lambda row: row.get("groups/zero_variance_fraction"))
    if limits.flat_groups is None or share is None or share < limits.flat_groups:
        return None
    text = (
        f"{share:.0%} of the last {limits.window} steps' groups have equal rewards (limit {limits.flat_groups:.0%}): "
        "there is nothing to learn from them; raise the temperature or take harder questions"
    )
    return share, limits.flat_groups, text


RULES = {
    "prmu_up_task_down": _prmu_up_task_down,
    "entropy_collapse": _entropy_collapse,
    "malformed": _malformed,
    "masked": _masked,
    "probability_gap": _probability_gap,
    "flat_groups": _flat_groups,
}


def firing(rows: Sequence[Row], limits: AlertLimits, step: int) -> list[Alert]:
    """Every alert that holds after the stage's rows, of which the last is that of `step`."""
    hits = ((kind, rule(rows, limits)) for kind, rule in RULES.items()) if rows else ()
    return [Alert(step, kind, *hit) for kind, hit in hits if hit is not None]


class AlertWatch:
    """Raises each kind once, until it clears, also over interrupted attempts.

    A resumed stage repeats the steps after its checkpoint. A kind that an earlier attempt raised in one of them counts
    as raised until a later step is without it.
    """

    def __init__(self, limits: AlertLimits, rows: Sequence[Row] = (), raised: Sequence[Alert] = ()) -> None:
        """`rows` are those of the steps up to the checkpoint, `raised` the alerts of earlier attempts."""
        self._limits = limits
        self._rows = [_needed(row) for row in rows]
        self._raised: dict[str, int] = {}
        for alert in raised:
            self._raised[alert.kind] = max(alert.step, self._raised.get(alert.kind, 0))
        last = int(rows[-1]["step"]) if rows else 0
        now = {alert.kind for alert in firing(self._rows, limits, last)}
        self._active = {kind for kind, step in self._raised.items() if step > last or kind in now}

    def after(self, row: Row, step: int) -> list[Alert]:
        """The alerts that the row of `step` raises."""
        self._rows.append(_needed(row))
        firing_now = firing(self._rows, self._limits, step)
        new = [alert for alert in firing_now if alert.kind not in self._active]
        kinds = {alert.kind for alert in firing_now}
        self._active = kinds | {kind for kind in self._active if step <= self._raised.get(kind, 0)}
        for alert in new:
            self._raised[alert.kind] = step
        return new


def _needed(row: Row) -> Row:
    values = {key: row[key] for key in _KEYS if key in row}
    return values if "parse/OK" in values or malformed_share(row) is None else {**values, "parse/OK": 0.0}


def read_alerts(path: Path) -> list[Alert]:
    """The alerts of an `alerts.jsonl`; [] without such a file. A line that a killed process cut is left out."""
    alerts = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            alerts.append(Alert(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return alerts


def append_alert(path: Path, alert: Alert) -> None:
    """Add one line."""
    cut = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a", encoding="utf-8") as handle:
        handle.write("\n" * cut + json.dumps(asdict(alert), ensure_ascii=False) + "\n")
