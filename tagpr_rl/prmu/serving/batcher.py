"""Gathers single requests of many callers into batches. It needs asyncio only: no torch, no ray."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")
Outcome = float | Exception
"""The result of a request: its score, or the error that this request caused."""

MAX_UNDER_WAY = 2
"""Number of batches started at a time. While one is scored the next one waits for the thread, which never idles."""


class QueueFull(Exception):
    """The queue is full; the caller may submit the request again later."""


@dataclass(slots=True)
class BatcherStats:
    """Counters since the start."""

    requests: int = 0
    batches: int = 0
    failed: int = 0
    largest: int = 0
    refused: int = 0
    """Number of requests that a full queue rejected. `requests` does not count them."""


@dataclass(slots=True)
class _Waiting(Generic[Request]):
    request: Request
    size: int
    future: asyncio.Future[float]


class Batcher(Generic[Request]):
    """A queue in front of `score`, which runs in one thread so that callers are not blocked.

    A batch closes `max_wait_s` seconds after its first request, or as soon as the sum of its sizes reaches `max_size`.
    While one batch is scored the next one gathers. `score` may return an exception for a request; the caller of that
    request gets it. If `score` itself raises, the requests of the batch are scored one by one, so that only the callers
    of the faulty requests get an error.
    """

    def __init__(
        self,
        score: Callable[[Sequence[Request]], Sequence[Outcome]],
        size: Callable[[Request], int],
        *,
        max_wait_s: float = 0.003,
        max_size: int = 32_768,
        max_waiting: int | None = None,
    ) -> None:
        """`max_waiting`: largest length of the queue; a further request gets QueueFull. None = no bound."""
        self.stats = BatcherStats()
        self._score, self._size = score, size
        self._max_wait_s, self._max_size, self._max_waiting = max_wait_s, max_size, max_waiting
        self._queue: deque[_Waiting[Request]] = deque()
        self._queued = 0
        self._filled = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._starts: list[float] = []
        self._under_way: deque[asyncio.Task[None]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prmu")

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def busy_s(self) -> float:
        """Seconds since the oldest batch under way was started; 0 if there is none."""
        return time.monotonic() - self._starts[0] if self._starts else 0.0

    async def submit(self, request: Request) -> float:
        """The score of one request. `size` runs before the request enters a batch, so its errors stop no other request.

        Raises QueueFull if the queue is full, and the error of `size` or `score` for this request.
        """
        if self._max_waiting is not None and len(self._queue) >= self._max_waiting:
            self.stats.refused += 1
            raise QueueFull(f"{len(self._queue)} requests wait already (the limit is {self._max_waiting})")
        waiting = _Waiting(request, self._size(request), asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._queued += waiting.size
        self.stats.requests += 1
        if self._queued >= self._max_size:
            self._filled.set()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._drain())
        return await waiting.future

    async def alone(self, call: Callable[[], Result]) -> Result:
        """What `call` returns; it runs in the thread of the batches, after those that are under way."""
        start = time.monotonic()
        self._starts.append(start)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        finally:
            self._starts.remove(start)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            closing = loop.call_later(self._max_wait_s, self._filled.set)
            await self._filled.wait()
            closing.cancel()
            if len(self._under_way) == MAX_UNDER_WAY:
                await self._under_way.popleft()  # they end in this order
            self._under_way.append(loop.create_task(self._run(self._take())))

    def _take(self) -> list[_Waiting[Request]]:
        """Remove the next batch from the queue: the oldest request and those nearest to it in size.

        The model pads a batch to its longest request, so number * largest size stays within the bound. The oldest
        request is always taken, so that none waits for ever.
        """
        oldest = self._queue[0].size
        order = sorted(range(len(self._queue)), key=lambda i: (abs(self._queue[i].size - oldest), i))
        largest, indices = oldest, {0}
        for i in order[1:]:
            largest = max(largest, self._queue[i].size)
            if (len(indices) + 1) * largest > self._max_size:
                break
            indices.add(i)
        batch = [waiting for i, waiting in enumerate(self._queue) if i in indices]
        self._queue = deque(waiting for i, waiting in enumerate(self._queue) if i not in indices)
        self._queued -= sum(waiting.size for waiting in batch)
        if self._queued < self._max_size:
            self._filled.clear()
        return batch

    async def _run(self, batch: list[_Waiting[Request]]) -> None:
        batch = [waiting for waiting in batch if not waiting.future.done()]  # cancelled callers
        if not batch:
            return
        start = time.monotonic()
        self._starts.append(start)
        try:
            scores = await asyncio.get_running_loop().run_in_executor(self._thread, self._score_wanted, batch)
        except Exception as error:  # noqa: BLE001  (passed on to the caller whose request it is)
            if len(batch) > 1:
                for waiting in batch:
                    await self._run([waiting])
                return
            scores = [error]
        finally:
            self._starts.remove(start)
        for waiting, score in zip(batch, scores, strict=True):
            self.stats.failed += isinstance(score, Exception)
            if waiting.future.done() or score is None:
                continue
            if isinstance(score, Exception):
                waiting.future.set_exception(score)
            else:
                waiting.future.set_result(score)

    def _score_wanted(self, batch: Sequence[_Waiting[Request]]) -> list[Outcome | None]:
        """Runs in the thread: the outcome of each request, None for those whose caller has gone."""
        wanted = [waiting for waiting in batch if not waiting.future.done()]
        if not wanted:
            return [None] * len(batch)
        self.stats.batches += 1
        self.stats.largest = max(self.stats.largest, len(wanted))
        outcomes = self._score([waiting.request for waiting in wanted])
        if len(outcomes) != len(wanted):
            raise RuntimeError(f"PRMU returned {len(outcomes)} scores for {len(wanted)} requests")
        by_request = dict(zip(map(id, wanted), outcomes, strict=True))
        return [by_request.get(id(waiting)) for waiting in batch]
