"""An SFT stage on verl's SFT trainer (verl/trainer/sft_trainer.py): one Ray actor per process."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tagpr_rl.backend.session.ranks import Rank, join, run_together
from tagpr_rl.backend.tracking.tracker import TrackerFactory


@ray.remote(num_cpus=1, num_gpus=1)
class SftWorker(Rank):
    """One training process. Rank 0 logs."""

    def run(
        self,
        rank: int,
        world: int,
        first: tuple[str, int],
        overrides: dict[str, Any],
        tracking: dict[str, Any],
        device: str,
    ) -> None:
        """Train to the end of the stage; all ranks return together."""
        import torch.distributed as dist
        import verl.trainer.sft_trainer as verl_sft

        from tagpr_rl.backend import platform_cpu
        from tagpr_rl.backend.trainer.hooks.checkpoint import StagedCheckpointHandler
        from tagpr_rl.backend.trainer.overrides import compose

        platform_cpu.assert_platform(device)
        verl_sft.CheckpointHandler = StagedCheckpointHandler
        trackers = TrackerFactory(tracking)
        verl_sft.Tracking = trackers
        config = compose("sft_trainer_engine", overrides)
        join(rank, world, first, device)
        try:
            trainer = verl_sft.SFTTrainer(config=config)
            trainer.fit()
        finally:
            trackers.finish()
            dist.destroy_process_group()


def run_sft(
    group: Any, devices_per_node: int, overrides: dict[str, Any], tracking: dict[str, Any], device: str
) -> None:
    """Start a worker a device, train, and end them. Raises what a worker raised.

    `group`: a placement group with a bundle of `devices_per_node` devices for each node. A node's workers have
    consecutive ranks, so that they can share a copy of the weights (`training.fsdp_size`).
    """
    world = group.bundle_count * devices_per_node
    places = [PlacementGroupSchedulingStrategy(group, rank // devices_per_node) for rank in range(world)]
    workers = [SftWorker.options(scheduling_strategy=place).remote() for place in places]  # type: ignore[attr-defined]
    run_together(workers, overrides, tracking, device)
