"""Hooks for every process that builds a verl model config; named in `model.external_lib`.

verl imports the module named there before it builds an engine, a rollout or a dataset
(verl/workers/config/model.py:149), which is the earliest point that costs no start-up time elsewhere.
"""

from __future__ import annotations

from verl.workers.rollout import base as rollout_base
from verl.workers.rollout import replica as rollout_replica

from tagpr_rl.backend import platform_cpu
from tagpr_rl.backend.trainer import prob_gap


def _load_replica() -> type:
    from tagpr_rl.backend.rollout.server import TagprReplica

    return TagprReplica


rollout_base._ROLLOUT_REGISTRY[("vllm", "async")] = "tagpr_rl.backend.rollout.weights.TagprServerAdapter"
rollout_replica.RolloutReplicaRegistry.register("vllm", _load_replica)

prob_gap.measure()

if platform_cpu.requested():
    from tagpr_rl.backend.platform_cpu import engines  # noqa: F401  (registers the CPU engine)
