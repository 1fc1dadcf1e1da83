"""Where a stage's metrics go: `metrics.jsonl` always, W&B as the recipe says.

Stands in for verl.utils.tracking.Tracking, whose file logger truncates on restart and whose
`wandb.init` takes no run id.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class TrackingSettings:
    """How one stage logs."""

    metrics_file: str
    wandb_mode: str
    """offline, online or disabled"""
    wandb_dir: str
    project: str
    group: str
    """The run's name: the stages of one run share a W&B group."""
    stage: str


class StageTracker:
    """Logs one stage. Same methods as verl's Tracking: `log(data, step)`, `finish(exit_code)`."""

    def __init__(self, settings: TrackingSettings, config: dict[str, Any] | None = None) -> None:
        self.settings = settings
        self._started = time.time()
        path = Path(settings.metrics_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._wandb: Any = None
        self.logger: dict[str, Any] = {}
        if settings.wandb_mode != "disabled":
            self._wandb = _start_wandb(settings, config or {})

    def log(self, data: dict[str, Any], step: int, backend: Any = None) -> None:
        """Append one line to metrics.jsonl and send the same numbers to W&B."""
        row = {key: number for key, value in data.items() if (number := _number(value)) is not None}
        line = {"step": int(step), "time_s": round(time.time() - self._started, 3), **row}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(row, step=int(step))

    def finish(self, exit_code: int = 0) -> None:
        """Close the file and the W&B run. Safe to call twice."""
        if not self._file.closed:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=exit_code)
            self._wandb = None


def _start_wandb(settings: TrackingSettings, config: dict[str, Any]) -> Any:
    import wandb

    os.makedirs(settings.wandb_dir, exist_ok=True)
    return wandb.init(
        project=settings.project,
        group=settings.group,
        name=f"{settings.group}/{settings.stage}",
        job_type=settings.stage,
        dir=settings.wandb_dir,
        mode=settings.wandb_mode,
        config=config,
        settings=wandb.Settings(console="off", silent=True, x_disable_stats=settings.wandb_mode == "offline"),
    )


def _number(value: Any) -> float | None:
    """A finite float, or None for anything else (text, tables, NaN)."""
    if isinstance(value, bool | str):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def settings_dict(settings: TrackingSettings) -> dict[str, str]:
    """Plain dict, to travel through Ray and OmegaConf."""
    return asdict(settings)
