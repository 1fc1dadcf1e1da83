"""Concurrent awaits become few calls, and nobody gets another's result."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tagpr_rl.backend.scoring.coalesce import Coalescer


def test_items_that_arrive_together_travel_together_and_come_back_in_order() -> None:
    calls: list[list[int]] = []

    async def double(items: list[int]) -> Sequence[int]:
        calls.append(items)
        return [2 * item for item in items]

    async def run() -> tuple[list[int], list[int]]:
        coalescer = Coalescer(double, wait_s=0.01)
        first = await asyncio.gather(*[coalescer.submit(i) for i in range(50)])
        second = await asyncio.gather(coalescer.submit(50), coalescer.submit(51))
        return first, second

    assert asyncio.run(run()) == ([2 * i for i in range(50)], [100, 102])
    assert calls == [list(range(50)), [50, 51]]


def test_a_call_under_way_does_not_hold_up_the_next() -> None:
    order: list[str] = []
    gate = asyncio.Event()

    async def call(items: list[str]) -> Sequence[str]:
        if "slow" in items:
            await gate.wait()
        order.extend(items)
        return items

    async def run() -> None:
        coalescer = Coalescer(call, wait_s=0.0)
        slow = asyncio.create_task(coalescer.submit("slow"))
        await asyncio.sleep(0.01)
        await coalescer.submit("fast")
        gate.set()
        await slow

    asyncio.run(run())
    assert order == ["fast", "slow"]


def test_an_error_reaches_every_caller_of_its_call_and_no_other() -> None:
    async def call(items: list[int]) -> Sequence[int]:
        if 0 in items:
            raise ValueError("bad item")
        return items

    async def run() -> list[object]:
        coalescer = Coalescer(call, wait_s=0.001)
        first = await asyncio.gather(coalescer.submit(0), coalescer.submit(1), return_exceptions=True)
        return [*first, await coalescer.submit(2)]

    one, two, three = asyncio.run(run())
    assert isinstance(one, ValueError) and isinstance(two, ValueError) and three == 2


def test_a_call_that_loses_an_item_is_an_error_and_a_caller_may_give_up() -> None:
    async def short(items: list[int]) -> Sequence[int]:
        await asyncio.sleep(0.02)
        return items[1:]

    async def run() -> None:
        coalescer = Coalescer(short, wait_s=0.0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(coalescer.submit(1), 0.005)
        with pytest.raises(RuntimeError, match="1 results for 2 items"):
            await asyncio.gather(coalescer.submit(1), coalescer.submit(2))

    asyncio.run(run())
