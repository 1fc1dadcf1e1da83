"""PRMU training in a Ray task, on the run's device budget."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import ray

from tagpr_rl.backend.tracking import StageTracker, TrackingSettings


@ray.remote(num_cpus=1, num_gpus=1)
def train_prmu_remote(
    pairs: str,
    backbone: str,
    out: str,
    settings: dict[str, Any],
    tracking: dict[str, Any],
    threads: int,
    zero: dict[str, Any] | None = None,
    user_shards: int | None = None,
) -> dict[str, float]:
    """Train PRMU on the pairs file and return its figures (prmu.train.train_prmu).

    `zero`: config.DeepSpeedBlock as a dict, to train with DeepSpeed; None trains with FSDP2.
    `user_shards`: move the users' rows into so many files afterwards (prmu.users_table); None leaves them.
    """
    import torch

    from tagpr_rl.prmu.pairs import read_pairs
    from tagpr_rl.prmu.sharding import Fsdp2Engine
    from tagpr_rl.prmu.train import PrmuConfig, train_prmu

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
        )
        if user_shards is not None:
            from tagpr_rl.prmu.users_table import shard_users

            shard_users(Path(out), shards=user_shards)
        return figures
    finally:
        tracker.finish()
