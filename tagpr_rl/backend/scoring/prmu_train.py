"""PRMU training in a Ray task, on the run's device budget."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray

from tagpr_rl.backend.tracking.settings import TrackingSettings
from tagpr_rl.backend.tracking.tracker import StageTracker
from tagpr_rl.run import checkpoints as steps_on_disk
from tagpr_rl.types import TagprError


class StepCheckpoints:
    """Implements prmu's protocol `Checkpoints` in a stage's folder, with complete and hashed checkpoints only."""

    def __init__(self, root: Path, every: int) -> None:
        self.root, self.every = root, every
        self.identity = steps_on_disk.current(root)

    @contextmanager
    def saving(self, step: int) -> Iterator[Path]:
        """A folder below the staging folder; hashed, renamed and counted at the end of the block."""
        staging = steps_on_disk.staging(self.root, self.identity)
        folder = steps_on_disk.step_folder(staging, step)
        try:
            folder.mkdir(parents=True)
            yield folder
            steps_on_disk.seal(folder, step, self.identity)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise TagprError(
                f"saving the checkpoint of step {step} in {self.root} failed: {error}. Nothing of it was kept; "
                "free some space and resume the run."
            ) from error
        if not steps_on_disk.publish(self.root, step, self.identity):
            raise TagprError(f"another process has resumed the stage of {self.root}; this one stops at step {step}")

    def newest(self) -> Path | None:
        """The checkpoint that `checkpoints.choose` has named."""
        pointer = self.root / steps_on_disk.POINTER
        if not pointer.is_file():
            return None
        return steps_on_disk.step_folder(self.root, int(pointer.read_text(encoding="utf-8")))


@ray.remote(num_cpus=1, num_gpus=1, max_retries=0)  # not again from the first step
def train_prmu_remote(
    pairs: str,
    backbone: str,
    out: str,
    settings: dict[str, Any],
    tracking: dict[str, Any],
    threads: int,
    zero: dict[str, Any] | None = None,
    checkpoints: tuple[str, int] = ("", 0),
    user_shards: int | None = None,
) -> dict[str, float]:
    """Train PRMU on the pairs file and return its figures (prmu.training.train.train_prmu).

    `zero`: config.DeepSpeedBlock as a dict, to train with DeepSpeed; None trains with FSDP2. `checkpoints`: the folder
    of step checkpoints, in which `checkpoints.choose` has named the one to go on from, and the steps between two (0 =
    none is written). `user_shards`: move the users' rows into so many files afterwards (prmu.users.table); None leaves
    them in the model's file.
    """
    import torch

    from tagpr_rl.prmu.training.config import PrmuConfig
    from tagpr_rl.prmu.training.preferences import read_pairs
    from tagpr_rl.prmu.training.sharding import Fsdp2Engine
    from tagpr_rl.prmu.training.train import train_prmu

    torch.set_num_threads(threads)
    make_engine: Any = Fsdp2Engine
    if zero is not None:
        from tagpr_rl.backend.deepspeed.prmu import ZeroPrmuEngine
        from tagpr_rl.config import DeepSpeedBlock

        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it; Ray shows a task its own device only
        make_engine = partial(ZeroPrmuEngine, DeepSpeedBlock(**zero))
    tracker = StageTracker(TrackingSettings(**tracking), settings)

    def on_step(row: dict[str, float]) -> None:
        tracker.log({f"prmu/{key}": value for key, value in row.items() if key != "step"}, step=int(row["step"]))

    try:
        figures = train_prmu(
            read_pairs(Path(pairs)),
            backbone=Path(backbone),
            out=Path(out),
            config=PrmuConfig(**settings),
            on_step=on_step,
            make_engine=make_engine,
            checkpoints=StepCheckpoints(Path(checkpoints[0]), checkpoints[1]) if checkpoints[1] else None,
        )
        if user_shards is not None:
            from tagpr_rl.prmu.users.table import shard_users

            shard_users(Path(out), shards=user_shards)
        return figures
    finally:
        tracker.finish()
