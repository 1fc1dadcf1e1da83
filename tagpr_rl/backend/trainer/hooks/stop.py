"""A stage's stop rules on verl's V1 trainers, through their hooks; `fit` stays verl's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tagpr_rl.config.rules import StopBlock
from tagpr_rl.monitor.stop import stop_after
from tagpr_rl.run import metrics as stage_metrics
from tagpr_rl.run.deadline import MARKER


class StopHooks:
    """For a V1 trainer, before its other mixins: ends `fit` once a rule holds or a save is asked for.

    verl's loop runs while `global_steps <= total_training_steps` (0.9.1 trainer_base.py:467) and saves before it
    computes a step's metrics, so the last checkpoint is saved here, and then the bound is lowered to this step. The
    learning rate's schedule was fixed at the start and does not change.
    """

    config: Any
    logger: Any
    global_steps: int
    total_training_steps: int
    checkpoint_manager: Any
    _saved_at = 0

    def on_train_begin(self) -> None:
        """Read the rule, and the rows of the steps that an earlier attempt made."""
        super().on_train_begin()  # type: ignore[misc]
        raw = OmegaConf.select(self.config, "trainer.stop")
        self._stop = None if raw is None else StopBlock.model_validate(OmegaConf.to_container(raw))
        self._rows = stage_metrics.rows(Path(self.logger.settings.metrics_file)) if self._stop is not None else []

    def _save_checkpoint(self) -> None:
        super()._save_checkpoint()  # type: ignore[misc]
        self._saved_at = self.global_steps

    def _compute_metrics(
        self, batch: Any, metrics: dict[str, Any], timing_raw: dict[str, Any], global_steps: int, epoch: int
    ) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)  # type: ignore[misc]
        if self._stop is not None:
            self._rows.append({**metrics, "step": global_steps})
        asked = (Path(self.logger.settings.metrics_file).parent / MARKER).exists()
        if not asked and stop_after(self._rows, self._stop, self.total_training_steps) is None:
            return
        if self._saved_at != global_steps:
            self.checkpoint_manager.sleep_replicas()  # a save is made while the engines' memory is free
            self._save_checkpoint()
        self.total_training_steps = global_steps
