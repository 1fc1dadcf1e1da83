"""Ray actors that score responses with PRMU: many agent-loop workers ask, they answer in dynamic micro-batches."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray

from tagpr_rl.backend.session.supervisor import result
from tagpr_rl.prmu.serving.batcher import Batcher, QueueFull
from tagpr_rl.prmu.serving.requests import ScoreReply, ScoreRequest, check_request
from tagpr_rl.types import TagprError

READ_AT_ONCE = 8
"""Requests of one call that are read before the first of them may be scored: reading all takes as long as a batch."""
MAX_CONCURRENT = 8192
"""Calls that may wait inside an actor; Ray queues the rest."""
CHUNK = 2048
"""Requests of one call of an evaluation."""
SHARE = 0.01
"""Of a shared device, as Ray counts; it bounds nothing."""


class PrmuActor:
    """Queues score requests and scores them in batches.

    An error names the request at fault and reaches only its caller; the other requests of its batch are scored.
    """

    def __init__(
        self,
        path: str,
        device: str = "cpu",
        max_wait_ms: float = 3.0,
        max_batch_tokens: int = 2048,
        max_waiting: int = 16_384,
        cache_mb: float = 512.0,
        threads: int = 1,
        dtype: str | None = None,
    ) -> None:
        """Load the PRMU folder `path`; TagprError when it is damaged or holds weights that are not finite.

        `max_batch_tokens` bounds a batch's response and profile tokens, `max_waiting` the queue, `cache_mb` the
        states of profile items that are kept; `dtype` is that of `PrmuServing`. Ray calls this again after a crash, so
        a restarted actor has read the folder anew and starts with an empty cache.
        """
        import torch

        from tagpr_rl.prmu.serving.score import Scorer

        torch.set_num_threads(threads)
        gc.freeze()  # a full collection over everything that was imported takes .3 s, in the middle of a batch
        if dtype == "tf32":
            torch.set_float32_matmul_precision("high")
        dtype = "float32" if dtype == "tf32" else dtype
        self._scorer = Scorer(Path(path), device, max_padded_tokens=max_batch_tokens, cache_mb=cache_mb, dtype=dtype)
        self._batcher: Batcher[ScoreRequest] = Batcher(
            self._scorer.score_each,
            self._scorer.length,
            max_wait_s=max_wait_ms / 1000,
            max_size=max_batch_tokens,
            max_waiting=max_waiting,
        )

    async def score(self, request: ScoreRequest) -> float:
        """PRMU's score in [0, 1].

        Raises TagprError on a malformed request, FloatingPointError on a score that is not finite, QueueFull.
        """
        return await self._batcher.submit(check_request(request))

    async def score_many(self, requests: Sequence[ScoreRequest], timeout_s: float) -> list[ScoreReply]:
        """One reply per request, in order; never raises. They share batches with other callers' requests.

        A request that is not scored within `timeout_s` is dropped from the queue: nobody waits for it any more.
        """
        tasks = []
        for number, request in enumerate(requests, start=1):
            tasks.append(asyncio.create_task(self.score(request)))
            if number % READ_AT_ONCE == 0:
                await asyncio.sleep(0)
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        return [self._reply(task, timeout_s) for task in tasks]

    async def score_together(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply]:
        """One reply per request, in order. The scores depend on these requests and their order alone: no other
        caller's share their batches, and the states of profile items are computed anew."""
        outcomes = await self._batcher.alone(partial(self._scorer.score_afresh, list(requests)))
        return [
            ScoreReply(None, f"{type(one).__name__}: {one}") if isinstance(one, Exception) else ScoreReply(one)
            for one in outcomes
        ]

    def _reply(self, task: asyncio.Task[float], timeout_s: float) -> ScoreReply:
        if not task.done():
            task.cancel()
            waiting = self._batcher.waiting
            return ScoreReply(
                None, f"the scorer needs more than {timeout_s:.1f} s ({waiting} requests wait)", again=True
            )
        error = task.exception()
        if error is None:
            return ScoreReply(task.result())
        return ScoreReply(None, f"{type(error).__name__}: {error}", again=isinstance(error, QueueFull))

    async def health(self) -> dict[str, Any]:
        """Process id, folder, queue length, seconds of the batch in hand, cache size and the batcher's counters.

        Answered without waiting for the queue, so that a late answer means a process that does not run.
        """
        items, size = self._scorer.cached
        return {
            "pid": os.getpid(),
            "path": str(self._scorer.path),
            "waiting": self._batcher.waiting,
            "busy_s": self._batcher.busy_s(),
            "cached_items": items,
            "cached_bytes": size,
            **asdict(self._batcher.stats),
        }


def start(
    name: str, path: str, *, number: int = 0, groups: Sequence[Any] = (), num_gpus: float = 0.0, num_cpus: float = 0.0,
    restarts: int = 3, **settings: Any,
) -> Any:  # fmt: skip
    """Start the named actor, the `number`th of its kind, and return its handle.

    `settings` are PrmuActor's other arguments. `device` "cuda" with `num_gpus` 0 shares a device that the policy has
    reserved with the placement `groups`.

    It restarts by itself after a crash, at most `restarts` times. A call that the crash broke is not repeated here:
    `prmu_client.ScorerPool` does so, and knows how long its caller still waits.
    """
    options: dict[str, Any] = {"name": name, "num_cpus": num_cpus, "num_gpus": num_gpus}
    options["max_concurrency"] = MAX_CONCURRENT
    if settings.get("device", "cpu") != "cpu" and not num_gpus:
        options |= _shared_device(number, groups)
    actor = ray.remote(PrmuActor).options(**options, max_restarts=restarts, max_task_retries=0)
    return actor.remote(path, **settings)


def names(name: str, scorers: int) -> list[str]:
    """`name_0`, `name_1`, ...: the names of `scorers` actors."""
    return [f"{name}_{number}" for number in range(scorers)]


def start_all(name: str, scorers: int, **arguments: Any) -> dict[str, Any]:
    """Start `scorers` actors (`names`) with `start`'s arguments; name -> handle, all of them healthy.

    TagprError with the reason when one cannot start.
    """
    actors = {own: start(own, number=number, **arguments) for number, own in enumerate(names(name, scorers))}
    try:
        ray.get([actor.health.remote() for actor in actors.values()])
    except ray.exceptions.RayActorError as error:
        raise TagprError(f"PRMU's scorer did not start: {last_line(error)}") from error
    return actors


def last_line(error: BaseException) -> str:
    """What an error says in at most 300 characters, without the traceback that Ray puts before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _shared_device(number: int, groups: Sequence[Any]) -> dict[str, Any]:
    """Actor options that put an actor on a device of the policy, beside its worker, and show it that device alone.

    The last node's first device, then the node before it, and so on; then everyone's second device. A worker of verl
    takes a third of its device's bundle (single_controller/ray/base.py:629), so Ray has some left to give.
    """
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    assert groups, "the policy's placement groups are not known yet"
    group = groups[-1 - number % len(groups)]
    bundle = number // len(groups) % group.bundle_count
    return {"num_gpus": SHARE, "scheduling_strategy": PlacementGroupSchedulingStrategy(group, bundle)}


@ray.remote(num_cpus=1, num_gpus=1)
class ScoreWorker:
    """One PRMU."""

    def __init__(self, path: str, device: str, threads: int) -> None:
        import torch

        from tagpr_rl.prmu.serving.score import Scorer

        torch.set_num_threads(threads)
        self.scorer = Scorer(Path(path), device)

    def raw(self, requests: list[ScoreRequest]) -> list[float]:
        """Raw scores, in order."""
        return self.scorer.raw(requests)


class RemoteScores:
    """A prmu.accuracy.RawScore on a Ray actor; a context manager that frees the device."""

    def __init__(self, path: Path, device: str, threads: int) -> None:
        self.actor = ScoreWorker.remote(str(path), device, threads)  # type: ignore[attr-defined]

    def __enter__(self) -> RemoteScores:
        return self

    def __exit__(self, *_: object) -> None:
        ray.kill(self.actor, no_restart=True)

    def __call__(self, requests: Sequence[ScoreRequest]) -> list[float]:
        """Raw scores, in order. Equal requests are scored once."""
        distinct = list(dict.fromkeys(requests))
        scores: list[float] = []
        for first in range(0, len(distinct), CHUNK):
            scores += result(self.actor.raw.remote(distinct[first : first + CHUNK]))
        score = dict(zip(distinct, scores, strict=True))
        return [score[request] for request in requests]
