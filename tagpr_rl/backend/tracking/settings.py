"""How one stage logs: plain values that travel to its processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TrackingSettings:
    """How one stage logs. All paths are absolute."""

    metrics_file: str
    wandb_mode: str
    """offline, online or disabled"""
    wandb_dir: str
    """The run's folder; W&B's and TensorBoard's files go below it."""
    project: str
    group: str
    """The run's name."""
    stage: str
    run_id: str = ""
    """One W&B run per pipeline: run.trackers.tracker_id."""
    step_offset: int = 0
    """Training steps of the stages before: run.trackers.step_offset."""
    tensorboard: bool = False
    alerts: dict[str, Any] | None = None
    """A GRPO stage's AlertLimits."""
