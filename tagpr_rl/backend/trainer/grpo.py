"""A GRPO stage on verl's V1 trainer: the actor that drives it, and the scoring actors beside it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from tagpr_rl.backend.tracking.tracker import TrackerFactory
from tagpr_rl.types import TagprError


@dataclass(frozen=True, slots=True)
class ScorerSettings:
    """The actors that score a stage's responses."""

    checker: dict[str, Any]
    """Arguments of response_scorer.start_checker."""
    prmu: dict[str, Any] | None
    """Arguments of prmu_actor.start_all; None = the stage has no PRMU."""
    health_s: float
    """A PRMU actor that does not say within this that it is well is restarted."""
    stall_s: float
    """The longest that a PRMU actor may take for one batch."""

    @property
    def on_policy_devices(self) -> bool:
        """Whether PRMU's actors share the policy's devices, which Ray chooses when the trainer starts."""
        return self.prmu is not None and self.prmu["device"] != "cpu" and not self.prmu["num_gpus"]


@ray.remote(num_cpus=1)
class GrpoDriver:
    """Runs verl's TaskRunnerV1 in this actor's process, with this project's trainers in the place of verl's."""

    def run(self, overrides: dict[str, Any], scorers: ScorerSettings, tracking: dict[str, Any], device: str) -> None:
        """Train to the end of the stage.

        Args:
            overrides: verl keys (overrides.grpo_overrides).
            scorers: the scoring actors to start.
            tracking: TrackingSettings as a dict.
            device: the recipe's device; RuntimeError if verl resolved another.
        """
        from verl.trainer import main_ppo
        from verl.trainer.ppo.v1 import trainer_base

        from tagpr_rl.backend import platform_cpu
        from tagpr_rl.backend.rollout.clients import ServerManager
        from tagpr_rl.backend.trainer.hooks.curriculum import rl_sampler
        from tagpr_rl.backend.trainer.trainers import TagprSeparateTrainer, TagprTrainer

        platform_cpu.assert_platform(device)
        # verl compares the mode's name with "sync" in five places, so our trainers take verl's names.
        actors = _Scorers(scorers)
        later = actors.start_prmu if scorers.on_policy_devices else None
        trainers = {"sync": TagprTrainer, "separate_async": TagprSeparateTrainer}
        for name, trainer in trainers.items():
            trainer_base.TRAINER_REGISTRY[name] = partial(trainer, start_scorers=later)
        trainer_base.LLMServerManager = ServerManager  # the trainer makes it by this name (trainer_base.py:372)
        trainer_base.create_rl_sampler = rl_sampler  # likewise (trainer_base.py:749)
        trackers = TrackerFactory(tracking)
        trainer_base.Tracking = trackers
        runner = main_ppo.TaskRunnerV1.__ray_metadata__.modified_class()
        try:
            runner.run(_valid_config(overrides | actors.overrides()))
        finally:
            actors.end_of_stage.set()
            trackers.finish()
            _remove_placement_groups(runner.trainer)


def _valid_config(overrides: dict[str, Any]) -> Any:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from tagpr_rl.backend.trainer.overrides import compose

    config = compose("ppo_trainer", overrides)
    if config.trainer.v1.trainer_mode == "separate_async":
        require_weight_transfer(config.actor_rollout_ref.rollout.checkpoint_engine.backend)
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    return config


def require_weight_transfer(backend: str) -> None:
    """TagprError if verl cannot load its engine `backend`, which carries weights to a rollout on its own devices.

    verl itself says so after all engines have started. Engines whose name begins with tagpr are this project's.
    """
    if backend.startswith("tagpr"):
        return
    import verl.checkpoint_engine as engines

    try:
        engines.CheckpointEngineRegistry.get(backend)
    except ValueError:
        reason = engines.CheckpointEngineRegistry._import_errors.get(f"{backend}_checkpoint_engine", "not registered")
        raise TagprError(
            f"placement.rollout=separate: verl's checkpoint engine {backend} does not load ({reason}); install the "
            "lock (`make install-gpu`), which has cupy, or use placement.rollout=colocated"
        ) from None


class _Scorers:
    """The scoring actors. They live as long as this object: Ray ends an actor that has no handle left."""

    def __init__(self, settings: ScorerSettings) -> None:
        """Start the checker, and PRMU's actors unless they share the policy's devices (`start_prmu`)."""
        from tagpr_rl.backend.scoring.response_scorer import start_checker

        own = f"{ray.get_runtime_context().get_job_id()}_{os.getpid()}"
        self.settings, self.prmu_name = settings, f"prmu_{own}"
        self.prmu: dict[str, Any] = {}
        self.end_of_stage = threading.Event()  # set = PRMU's actors are watched no longer
        self.checker_name = f"tag_checker_{own}"
        self.checker = start_checker(self.checker_name, **settings.checker)
        if settings.prmu is not None and not settings.on_policy_devices:
            self.start_prmu()
        ray.get(self.checker.health.remote())

    def start_prmu(self, groups: Sequence[Any] = ()) -> None:
        """Start PRMU's actors, and a thread that watches them. `groups`: the policy's placement groups, to share."""
        from tagpr_rl.backend.scoring import prmu_actor, prmu_client

        assert self.settings.prmu is not None
        started = time.monotonic()
        self.prmu = prmu_actor.start_all(self.prmu_name, groups=groups, **self.settings.prmu)
        arguments = {
            "every_s": self.settings.health_s / 4,
            "limit_s": self.settings.health_s,
            "stall_s": self.settings.stall_s,
            "start_s": max(60.0, 3 * (time.monotonic() - started)),
            "stopped": self.end_of_stage.wait,
            "report": lambda line: print(line, flush=True),
        }
        threading.Thread(target=prmu_client.watch, args=(self.prmu,), kwargs=arguments, daemon=True).start()

    def overrides(self) -> dict[str, Any]:
        """The overrides that name the actors to the agent loops."""
        from tagpr_rl.backend.scoring.prmu_actor import names

        count = self.settings.prmu["scorers"] if self.settings.prmu is not None else 0
        return {
            "+reward.reward_kwargs.tag_checker": self.checker_name,
            "+reward.reward_kwargs.prmu": names(self.prmu_name, count),
        }


def _remove_placement_groups(trainer: Any) -> None:
    """Give the stage's devices back: Ray keeps a placement group until the job ends or it is removed."""
    policy = getattr(trainer, "resource_pool_manager", None)
    pools = list(policy.resource_pool_dict.values()) if policy is not None else []
    rollout = getattr(trainer, "standalone_server_manager", None)  # of the separate_async trainer
    pools += [replica.resource_pool for replica in rollout.get_replicas()] if rollout is not None else []
    for pool in pools:
        for group in getattr(pool, "pgs", None) or ():
            ray.util.remove_placement_group(group)
