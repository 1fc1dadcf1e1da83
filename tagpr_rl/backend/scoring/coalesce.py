"""Many concurrent awaits, few calls: items that arrive close together, or that belong together, travel together.

Plain asyncio.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Turn:
    """An item's number among those that belong together."""

    batch: str
    """Name of all of them."""
    number: int
    count: int


class Coalescer(Generic[Item, Result]):
    """Collects items for `wait_s` seconds after the first and hands them to `call` in lists of at most `most`.

    Calls may overlap: items that arrive while one is under way start the next. An error of a call reaches
    every caller whose item it carried.
    """

    def __init__(
        self, call: Callable[[list[Item]], Awaitable[Sequence[Result]]], wait_s: float = 0.005, most: int = 1024
    ) -> None:
        self._call, self._wait_s, self._most = call, wait_s, most
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item) -> Result:
        """The result of this item."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._waiting) == 1:
            self._start(self._collect())
        return await future

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._calls.add(task)  # the loop itself keeps no reference to a task
        task.add_done_callback(self._calls.discard)

    async def _collect(self) -> None:
        await asyncio.sleep(self._wait_s)
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), self._most):
            self._start(self._pass_on(waiting[start : start + self._most]))

    async def _pass_on(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        await call_for(self._call, batch)


class Gatherer(Generic[Item, Result]):
    """Collects the items of a batch until all are there, and hands them to `call` in the order of their numbers.

    An item that will not come leaves: the others do not wait for it.
    """

    def __init__(self, call: Callable[[list[Item]], Awaitable[Sequence[Result]]]) -> None:
        self._call = call
        self._batches: dict[str, dict[int, tuple[Item, asyncio.Future[Result]] | None]] = {}
        self._calls: set[asyncio.Task[None]] = set()

    async def submit(self, turn: Turn, item: Item) -> Result:
        """The result of this item."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._put(turn, (item, future))
        return await future

    def leave(self, turn: Turn) -> None:
        """The item of this turn will not come."""
        self._put(turn, None)

    def _put(self, turn: Turn, item: tuple[Item, asyncio.Future[Result]] | None) -> None:
        waiting = self._batches.setdefault(turn.batch, {})
        waiting[turn.number] = item
        if len(waiting) < turn.count:
            return
        del self._batches[turn.batch]
        present = [own for _, own in sorted(waiting.items(), key=lambda pair: pair[0]) if own is not None]
        task = asyncio.create_task(call_for(self._call, present))
        self._calls.add(task)  # the loop itself keeps no reference to a task
        task.add_done_callback(self._calls.discard)


async def call_for(
    call: Callable[[list[Item]], Awaitable[Sequence[Result]]], batch: list[tuple[Item, asyncio.Future[Result]]]
) -> None:
    """Call once, and give each item's future its result; all of them an error of the call. Nothing for no item."""
    if not batch:
        return
    try:
        results = await call([item for item, _ in batch])
        if len(results) != len(batch):
            raise RuntimeError(f"{len(results)} results for {len(batch)} items")
    except Exception as error:  # noqa: BLE001  (passed on to the callers)
        for _, future in batch:
            if not future.done():
                future.set_exception(error)
        return
    for (_, future), result in zip(batch, results, strict=True):
        if not future.done():
            future.set_result(result)
