"""Where a step's time goes: its phases, and the rest, in which only the driver works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PHASES: dict[str, tuple[str, ...]] = {
    "generation": ("gen",),
    "reward": ("reward",),
    "old_log_prob": ("old_log_prob",),
    "ref": ("ref",),
    "values": ("values",),
    "advantage": ("adv",),
    "update_critic": ("update_critic",),
    "update_actor": ("update_actor",),
    "weight_sync": ("update_weights",),
    "switch": ("switch_wait", "switch_to_trainer", "switch_to_rollout"),
    "checkpoint": ("save_checkpoint",),
}
"""Our name -> verl 0.9.1's timers. They run one after another in the timer `step`, so their union is their sum."""


def phase_metrics(timing: Mapping[str, float], scoring_s: float = 0.0) -> dict[str, float]:
    """`phase/<name>_s` and `_share` of every phase that ran; `driver/only_s`, the step without them, and its share.

    Args:
        timing: verl's timers in seconds, `step` among them ({} is returned without it).
        scoring_s: seconds of `gen` in which every response had ended and a score was waited for; they count as
            `reward`, not as `generation`.
    """
    step = timing.get("step", 0.0)
    if step <= 0:
        return {}
    seconds = {
        name: sum(timing[timer] for timer in timers if timer in timing)
        for name, timers in PHASES.items()
        if any(timer in timing for timer in timers)
    }
    if "generation" in seconds:
        moved = min(scoring_s, seconds["generation"])
        seconds["generation"] -= moved
        seconds["reward"] = seconds.get("reward", 0.0) + moved  # 0 where every score was there in time
    seconds = {name: seconds[name] for name in PHASES if name in seconds}
    only = max(0.0, step - sum(seconds.values()))
    found = {f"phase/{name}_s": value for name, value in seconds.items()}
    found |= {f"phase/{name}_share": value / step for name, value in seconds.items()}
    return found | {"driver/only_s": only, "driver/share": only / step}


def scoring_wait(asked: Sequence[Mapping[str, Any]], windows: Sequence[tuple[float, float]]) -> float:
    """Seconds between the end of the last rollout and the last score that lie in `windows`.

    Args:
        asked: each response's `response_scorer.Asked` row (Unix seconds of the workers' clocks).
        windows: (begin, end) of the times in which the trainer waited for responses.
    """
    if not asked:
        return 0.0
    begin, end = max(row["asked_at"] for row in asked), max(row["scored_at"] for row in asked)
    return sum(max(0.0, min(end, until) - max(begin, since)) for since, until in windows)
