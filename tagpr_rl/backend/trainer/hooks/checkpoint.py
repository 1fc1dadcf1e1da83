"""Checkpoints of verl's V1 trainers through the staging folder (`backend.checkpointing`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tagpr_rl.backend.trainer.hooks.staging import publish, require_all_ranks, saving
from tagpr_rl.run import checkpoints


class CheckpointHooks:
    """For a V1 trainer: a save becomes visible when it is whole (trainer_base.py:948 writes in place)."""

    config: Any
    logger: Any
    global_steps: int

    def _load_checkpoint(self) -> None:
        self._checkpoints = Path(self.config.trainer.default_local_dir)
        self._identity = checkpoints.current(self._checkpoints)
        super()._load_checkpoint()  # type: ignore[misc]

    def _save_checkpoint(self) -> None:
        """verl's save, in the staging folder; published once the step's metrics row is on disk.

        `fit` saves before it logs: a run killed in between would otherwise resume after a step without a row.
        """
        step, trainer = self.global_steps, self.config.trainer
        with saving(self._checkpoints, step, self._identity) as staging:
            trainer.default_local_dir = str(staging)
            try:
                super()._save_checkpoint()  # type: ignore[misc]
            finally:
                trainer.default_local_dir = str(self._checkpoints)
            folder = checkpoints.step_folder(staging, step)
            require_all_ranks(folder, trainer.nnodes * trainer.n_gpus_per_node)
            checkpoints.seal(folder, step, self._identity)
        self.logger.after_row(step, lambda: publish(self._checkpoints, step, self._identity))
