"""Gather single requests from many callers into batches: plain asyncio, no torch, no ray."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Request = TypeVar("Request")
Outcome = float | Exception
"""What a request comes to: its score, or the error that it alone is at fault for."""


IN_HAND = 2
"""Batches begun at a time: while one is scored the next one waits for the thread, so that this never stands still."""


class QueueFull(Exception):
    """Too many requests wait already; the caller may ask again later."""


@dataclass(slots=True)
class BatcherStats:
    """Counters since the start."""

    requests: int = 0
    batches: int = 0
    failed: int = 0
    largest: int = 0
    refused: int = 0
    """Requests that a full queue turned away; they are not among `requests`."""


@dataclass(slots=True)
class _Waiting(Generic[Request]):
    request: Request
    size: int
    future: asyncio.Future[float]


class Batcher(Generic[Request]):
    """A queue in front of `score`, which runs in one thread so that callers keep arriving meanwhile.

    A batch closes `max_wait_s` seconds after its first request, or as soon as its sizes reach `max_size`.
    While one batch is scored the next one gathers. `score` may return an exception in a request's place, which its
    caller gets. If `score` itself raises, the batch's requests are scored one by one, so that only those at fault
    see the error.
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
        """`max_waiting`: requests that may queue; one more is refused with QueueFull. None = no bound."""
        self.stats = BatcherStats()
        self._score, self._size = score, size
        self._max_wait_s, self._max_size, self._max_waiting = max_wait_s, max_size, max_waiting
        self._queue: deque[_Waiting[Request]] = deque()
        self._queued = 0
        self._filled = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._begun: list[float] = []
        self._under_way: deque[asyncio.Task[None]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prmu")

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def busy_s(self) -> float:
        """Seconds since the oldest batch in hand was begun; 0 when none is."""
        return time.monotonic() - self._begun[0] if self._begun else 0.0

    async def submit(self, request: Request) -> float:
        """Score one request. `size` is asked first, so a request it refuses never enters a batch.

        Raises QueueFull when the queue is full, and whatever `score` has to say of this request.
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

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            closing = loop.call_later(self._max_wait_s, self._filled.set)
            await self._filled.wait()
            closing.cancel()
            if len(self._under_way) == IN_HAND:
                await self._under_way.popleft()  # they end in this order
            self._under_way.append(loop.create_task(self._run(self._take())))

    def _take(self) -> list[_Waiting[Request]]:
        """Remove the next batch from the queue: the oldest request, and those nearest to it in size.

        As many as requests * largest size within the bound: the model pads a batch to its longest. The oldest is
        always among them, so nothing waits for ever.
        """
        oldest = self._queue[0].size
        order = sorted(range(len(self._queue)), key=lambda i: (abs(self._queue[i].size - oldest), i))
        largest, taken = oldest, {0}
        for i in order[1:]:
            largest = max(largest, self._queue[i].size)
            if (len(taken) + 1) * largest > self._max_size:
                break
            taken.add(i)
        batch = [waiting for i, waiting in enumerate(self._queue) if i in taken]
        self._queue = deque(waiting for i, waiting in enumerate(self._queue) if i not in taken)
        self._queued -= sum(waiting.size for waiting in batch)
        if self._queued < self._max_size:
            self._filled.clear()
        return batch

    async def _run(self, batch: list[_Waiting[Request]]) -> None:
        batch = [waiting for waiting in batch if not waiting.future.done()]  # cancelled callers
        if not batch:
            return
        began = time.monotonic()
        self._begun.append(began)
        try:
            scores = await asyncio.get_running_loop().run_in_executor(self._thread, self._score_wanted, batch)
        except Exception as error:  # noqa: BLE001  (passed on to the caller whose request it is)
            if len(batch) > 1:
                for waiting in batch:
                    await self._run([waiting])
                return
            scores = [error]
        finally:
            self._begun.remove(began)
        for waiting, score in zip(batch, scores, strict=True):
            self.stats.failed += isinstance(score, Exception)
            if waiting.future.done() or score is None:
                continue
            if isinstance(score, Exception):
                waiting.future.set_exception(score)
            else:
                waiting.future.set_result(score)

    def _score_wanted(self, batch: Sequence[_Waiting[Request]]) -> list[Outcome | None]:
        """In the thread: the outcome of each request, None for those whose caller is gone by now."""
        wanted = [waiting for waiting in batch if not waiting.future.done()]
        if not wanted:
            return [None] * len(batch)
        self.stats.batches += 1
        self.stats.largest = max(self.stats.largest, len(wanted))
        found = self._score([waiting.request for waiting in wanted])
        if len(found) != len(wanted):
            raise RuntimeError(f"PRMU returned {len(found)} scores for {len(wanted)} requests")
        by_request = dict(zip(map(id, wanted), found, strict=True))
        return [by_request.get(id(waiting)) for waiting in batch]
