"""The block `log`: where a run's metrics go."""

from __future__ import annotations

from typing import Literal

from tagpr_rl.config.base import Closed


class Loggers(Closed):
    """Trackers of a run beside `metrics.jsonl`, which is always written."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    """How Weights & Biases records the run, all of whose stages are one W&B run; offline writes files to send later."""
    tensorboard: bool = False
    """Write TensorBoard's event files as well."""
    project: str = "tagpr_rl"
    """Name of the project at the trackers."""
