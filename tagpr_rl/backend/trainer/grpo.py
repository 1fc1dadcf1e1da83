"""A GRPO stage on verl's V1 trainer: the actor that drives it, and the scoring actors beside it."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import ray

from tagpr_rl.backend.tracking.tracker import TrackerFactory


@ray.remote(num_cpus=1)
class GrpoDriver:
    """Runs verl's TaskRunnerV1 in this actor's process, with our trainer in the place of its sync one."""

    def run(self, overrides: dict[str, Any], scorers: dict[str, Any], tracking: dict[str, Any], device: str) -> None:
        """Train to the end of the stage.

        Args:
            overrides: verl keys (verl_config.grpo_overrides).
            scorers: {"checker": kwargs of TagChecker, "prmu": kwargs of prmu_actor.start_all or None,
                "health_s": seconds within which a PRMU actor must say that it is well, "stall_s": the longest that
                it may take for one batch}.
            tracking: TrackingSettings as a dict.
            device: the recipe's device; RuntimeError if verl resolved another.
        """
        from verl.trainer import main_ppo
        from verl.trainer.ppo.utils import need_critic, need_reference_policy
        from verl.trainer.ppo.v1 import trainer_base
        from verl.utils.config import validate_config

        from tagpr_rl.backend import platform_cpu
        from tagpr_rl.backend.scoring import tag_checker
        from tagpr_rl.backend.trainer.compose import compose
        from tagpr_rl.backend.trainer.sync import TagprTrainer

        platform_cpu.assert_platform(device)
        # verl compares the mode's name with "sync" in five places, so our trainer takes that name.
        trainer_base.TRAINER_REGISTRY["sync"] = TagprTrainer
        separate = overrides["trainer.v1.trainer_mode"] == "separate_async"
        if separate:
            from tagpr_rl.backend.trainer.separate import TagprSeparateTrainer, remove_rollout_placement_groups

            trainer_base.TRAINER_REGISTRY["separate_async"] = TagprSeparateTrainer
        trackers = TrackerFactory(tracking)
        trainer_base.Tracking = trackers
        job = ray.get_runtime_context().get_job_id()
        checker_name = f"tag_checker_{job}_{os.getpid()}"
        checker = tag_checker.start(checker_name, **scorers["checker"])
        prmu: dict[str, Any] = {}
        start_s = 0.0
        if scorers["prmu"] is not None:
            from tagpr_rl.backend.scoring import prmu_actor

            started = time.monotonic()
            prmu = prmu_actor.start_all(f"prmu_{job}_{os.getpid()}", **scorers["prmu"])
            start_s = max(60.0, 3 * (time.monotonic() - started))
        ray.get(checker.health.remote())
        config = compose(
            "ppo_trainer",
            {
                **overrides,
                "+reward.reward_kwargs.tag_checker": checker_name,
                "+reward.reward_kwargs.prmu": list(prmu),
            },
        )
        validate_config(
            config=config,
            use_reference_policy=need_reference_policy(config),
            use_critic=need_critic(config),
        )
        runner = main_ppo.TaskRunnerV1.__ray_metadata__.modified_class()
        watching = _watch(prmu, scorers, start_s)
        try:
            runner.run(config)
        finally:
            watching.set()
            trackers.finish()
            _remove_placement_groups(runner.trainer)
            if separate:
                remove_rollout_placement_groups(runner.trainer)


def _watch(actors: dict[str, Any], scorers: dict[str, Any], start_s: float) -> threading.Event:
    """Watch the PRMU actors in a thread, until the returned event is set."""
    stop = threading.Event()
    if actors:
        from tagpr_rl.backend.scoring import prmu_client

        limit = float(scorers["health_s"])
        times = {"every_s": limit / 4, "limit_s": limit, "stall_s": float(scorers["stall_s"]), "start_s": start_s}
        arguments = {**times, "stopped": stop.wait, "report": lambda line: print(line, flush=True)}
        threading.Thread(target=prmu_client.watch, args=(actors,), kwargs=arguments, daemon=True).start()
    return stop


def _remove_placement_groups(trainer: Any) -> None:
    """Give the stage's devices back: Ray keeps a placement group until the job ends or it is removed."""
    manager = getattr(trainer, "resource_pool_manager", None)
    for pool in manager.resource_pool_dict.values() if manager is not None else ():
        for group in pool.pgs or ():
            ray.util.remove_placement_group(group)
