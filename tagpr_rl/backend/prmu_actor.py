"""Ray actor that scores responses with PRMU: many agent-loop workers ask, it answers in dynamic micro-batches."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from tagpr_rl.prmu.batcher import Batcher
from tagpr_rl.prmu.requests import ScoreRequest, check_request
from tagpr_rl.types import TagprError

MAX_CONCURRENT = 8192
"""Requests that may wait inside the actor; Ray queues the rest."""


class PrmuActor:
    """Queues score requests and scores them in batches. A bad request or a non-finite score raises.

    An error names the request at fault and reaches only its caller; the other requests of its batch are scored.
    """

    def __init__(
        self,
        path: str,
        device: str = "cpu",
        max_wait_ms: float = 3.0,
        max_batch_tokens: int = 32_768,
        threads: int = 1,
    ) -> None:
        """Load the PRMU folder `path`. `max_batch_tokens` bounds a batch's response and profile tokens."""
        import torch

        from tagpr_rl.prmu.score import Scorer

        torch.set_num_threads(threads)
        self._scorer = Scorer(Path(path), device, max_padded_tokens=max_batch_tokens)
        self._batcher: Batcher[ScoreRequest] = Batcher(
            self._scorer.score, self._scorer.length, max_wait_s=max_wait_ms / 1000, max_size=max_batch_tokens
        )

    async def score(self, request: ScoreRequest) -> float:
        """PRMU's score in [0, 1]. TagprError on a malformed request, FloatingPointError on a non-finite score."""
        return await self._batcher.submit(check_request(request))

    async def score_many(self, requests: Sequence[ScoreRequest]) -> list[float]:
        """The scores of several requests, which share batches with other callers'. Raises as `score` does."""
        return list(await asyncio.gather(*[self.score(request) for request in requests]))

    async def health(self) -> dict[str, Any]:
        """Process id, the model's folder, and counts of requests, batches, failures and the largest batch."""
        return {"pid": os.getpid(), "path": str(self._scorer.path), **asdict(self._batcher.stats)}


def start(name: str, path: str, *, num_gpus: float = 0.0, num_cpus: float = 0.0, **settings: Any) -> Any:
    """Start the named actor and return its handle; `settings` are PrmuActor's other arguments.

    `device` "cuda" with `num_gpus` 0 shares a device that the policy has reserved: Ray is told not to hide the
    devices from the actor, which is placed on a node that has some.

    It restarts by itself after a crash, and retries a call that the crash broke; an error raised by `score` is not
    retried.
    """
    options: dict[str, Any] = {"name": name, "num_cpus": num_cpus, "num_gpus": num_gpus}
    options["max_concurrency"] = MAX_CONCURRENT
    if settings.get("device", "cpu") != "cpu" and not num_gpus:
        options |= _shared_device()
    actor = ray.remote(PrmuActor).options(**options, max_restarts=3, max_task_retries=3)
    return actor.remote(path, **settings)


def _shared_device() -> dict[str, Any]:
    """Actor options that show a node's devices to an actor which reserves none."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= 1]
    if not nodes:
        raise TagprError("placement.prmu=shared: the cluster has no node with a device; use cpu")
    # Ray empties CUDA_VISIBLE_DEVICES of an actor that reserves no device (ray/_private/utils.py) but for this.
    return {
        "scheduling_strategy": NodeAffinitySchedulingStrategy(nodes[-1], soft=False),
        "runtime_env": {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}},
    }
