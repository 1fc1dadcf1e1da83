"""TensorBoard files of a run: one folder for all stages, over the pipeline's global step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tagpr_rl.backend.tracking.settings import TrackingSettings
from tagpr_rl.run import metrics


class TensorboardSink:
    """Writes `<stage>/<metric>`. After a restart, steps that are made again replace those of the first time."""

    def __init__(self, settings: TrackingSettings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._settings = settings
        newest = metrics.last(Path(settings.metrics_file)) or {"step": 0}
        self._writer = SummaryWriter(
            str(Path(settings.wandb_dir) / "tensorboard"),
            purge_step=settings.step_offset + int(newest["step"]) + 1,
        )

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Write one step."""
        for key, value in row.items():
            self._writer.add_scalar(f"{self._settings.stage}/{key}", value, self._settings.step_offset + step)
        self._writer.flush()

    def finish(self, exit_code: int) -> None:
        self._writer.close()


def write_results(settings: TrackingSettings, results: Mapping[str, float]) -> None:
    """The stages' results as scalars `results/<name>` at the last global step."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(Path(settings.wandb_dir) / "tensorboard"))
    for key, value in results.items():
        writer.add_scalar(f"results/{key}", value, settings.step_offset)
    writer.close()
