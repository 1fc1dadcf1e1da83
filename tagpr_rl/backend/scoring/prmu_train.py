"""PRMU's training on the policy's devices: one Ray actor per process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from tagpr_rl.backend.session.ranks import Rank, join, run_together
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


@dataclass(frozen=True, slots=True)
class PrmuJob:
    """What to train, as it travels to every process."""

    pairs: str
    """File of the training pairs."""
    backbone: str
    """Folder of the model to start from."""
    out: str
    """Folder of the PRMU. Like the others, all nodes see it."""
    settings: dict[str, Any]
    """prmu.training.config.PrmuConfig as a dict."""
    tracking: dict[str, Any]
    """TrackingSettings as a dict; the first process logs."""
    threads: int
    """CPU threads of a process."""
    zero: dict[str, Any] | None = None
    """config.DeepSpeedBlock as a dict, to train with DeepSpeed; None trains with FSDP2."""
    checkpoints: str = ""
    """Folder of step checkpoints, in which `checkpoints.choose` has named the one to go on from."""
    every: int = 0
    """Steps between two checkpoints; 0 = none is written."""
    user_shards: int | None = None
    """Files that the users' rows are moved to afterwards (prmu.users.table); None leaves them in the model's file."""


@ray.remote(num_cpus=1, num_gpus=1)
class PrmuWorker(Rank):
    """One training process. The first one logs and writes."""

    def run(self, rank: int, world: int, first: tuple[str, int], job: PrmuJob) -> dict[str, float]:
        """Train to the end (prmu.training.train.train_prmu) and return the figures; all processes return together."""
        import torch
        import torch.distributed as dist

        torch.set_num_threads(job.threads)
        join(rank, world, first, str(job.settings.get("device")))
        tracker = StageTracker(TrackingSettings(**job.tracking), job.settings) if rank == 0 else None
        try:
            figures = _train(job, tracker)
            if job.user_shards is not None and rank == 0:
                from tagpr_rl.prmu.users.table import shard_users

                shard_users(Path(job.out), shards=job.user_shards)
            return figures
        finally:
            if tracker is not None:
                tracker.finish()
            dist.destroy_process_group()


def _train(job: PrmuJob, tracker: StageTracker | None) -> dict[str, float]:
    from tagpr_rl.prmu.training.config import PrmuConfig
    from tagpr_rl.prmu.training.preferences import read_pairs
    from tagpr_rl.prmu.training.sharding import Fsdp2Engine
    from tagpr_rl.prmu.training.train import train_prmu

    make_engine: Any = Fsdp2Engine
    if job.zero is not None:
        from tagpr_rl.backend.deepspeed.prmu import ZeroPrmuEngine
        from tagpr_rl.config import DeepSpeedBlock

        make_engine = partial(ZeroPrmuEngine, DeepSpeedBlock(**job.zero))

    def on_step(row: dict[str, float]) -> None:
        if tracker is not None:
            tracker.log({f"prmu/{key}": value for key, value in row.items() if key != "step"}, step=int(row["step"]))

    return train_prmu(
        read_pairs(Path(job.pairs)),
        backbone=Path(job.backbone),
        out=Path(job.out),
        config=PrmuConfig(**job.settings),
        on_step=on_step,
        make_engine=make_engine,
        checkpoints=StepCheckpoints(Path(job.checkpoints), job.every) if job.every else None,
    )


def run_prmu(world: int, job: PrmuJob) -> dict[str, float]:
    """Start `world` workers, train, end them, and return the figures. Raises what a worker raised."""
    workers = [PrmuWorker.remote() for _ in range(world)]  # type: ignore[attr-defined]
    return dict(run_together(workers, job)[0])
