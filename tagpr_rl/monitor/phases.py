"""Where a step's time goes: its phases, the wait for scores, and the rest, in which only the driver works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
"""Phase -> verl 0.9.1's timers. They run one after another in the timer `step`, so their union is their sum."""


@dataclass(frozen=True, slots=True)
class ScoringTimes:
    """When a response's scores were asked for and came, in Unix seconds of its worker's clock."""

    sent_at: float
    """PRMU was asked; the response had just ended."""
    done_at: float
    """PRMU answered."""
    scored_at: float
    """The last component came."""
    reason: str = ""
    """Why PRMU gave no score; empty if it did, or is off."""


def phase_metrics(timing: Mapping[str, float], scoring_s: float = 0.0) -> dict[str, float]:
    """`phase/<name>_s` and `_share` of every phase that ran; `driver/only_s`, the step without them, and its share.

    Args:
        timing: verl's timers in seconds, `step` among them ({} is returned without it).
        scoring_s: seconds of `gen` in which all responses had ended and a score was missing; they count as `reward`,
            not as `generation`.
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
        seconds["reward"] = seconds.get("reward", 0.0) + moved  # 0 if every score came in time
    seconds = {name: seconds[name] for name in PHASES if name in seconds}
    only = max(0.0, step - sum(seconds.values()))
    metrics = {f"phase/{name}_s": value for name, value in seconds.items()}
    metrics |= {f"phase/{name}_share": value / step for name, value in seconds.items()}
    return metrics | {"driver/only_s": only, "driver/share": only / step}


def scoring_wait(times: Sequence[ScoringTimes], windows: Sequence[tuple[float, float]]) -> float:
    """Seconds between the end of the last rollout and the last score that lie in `windows`.

    Args:
        times: those of every response of the step.
        windows: (begin, end) of the times in which the trainer waited for responses.
    """
    if not times:
        return 0.0
    begin, end = max(own.sent_at for own in times), max(own.scored_at for own in times)
    return float(sum(max(0.0, min(end, until) - max(begin, since)) for since, until in windows))


def prmu_metrics(times: Sequence[ScoringTimes], step_s: float | None) -> dict[str, float]:
    """How long PRMU took for the responses of a step; {} without responses that it was asked for.

    Returns:
        `timing_s/prmu_wait`: seconds from the end of the last rollout to the last score, which the step waits for;
        `prmu/wait_fraction`: as a share of the step's seconds `step_s`; `prmu/seconds/{mean,max}` of a response.
    """
    if not times:
        return {}
    wait = max(own.done_at for own in times) - max(own.sent_at for own in times)
    seconds = [own.done_at - own.sent_at for own in times]
    metrics = {
        "timing_s/prmu_wait": wait,
        "prmu/seconds/mean": sum(seconds) / len(seconds),
        "prmu/seconds/max": max(seconds),
    }
    return metrics if not step_s else metrics | {"prmu/wait_fraction": wait / step_s}
