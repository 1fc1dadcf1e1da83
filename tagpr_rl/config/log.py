"""The block `log`: where a run's metrics go."""

from __future__ import annotations

from typing import Literal

from tagpr_rl.config.base import Closed


class Loggers(Closed):
    """`metrics.jsonl` is always written."""

    trackers: tuple[Literal["jsonl", "wandb", "tensorboard"], ...] = ("jsonl", "wandb")
    wandb: Literal["offline", "online", "disabled"] = "offline"
    """How the tracker "wandb" runs; one W&B run per pipeline."""
    project: str = "tagpr_rl"
