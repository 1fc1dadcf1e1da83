"""Concurrent awaits become few calls, and nobody gets another's result."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tagpr_rl.backend.scoring.coalesce import Coalescer, Gatherer, Turn


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


def test_a_batch_is_one_call_in_the_order_of_its_numbers_once_all_are_there() -> None:
    calls: list[list[str]] = []

    async def upper(items: list[str]) -> Sequence[str]:
        calls.append(items)
        return [item.upper() for item in items]

    async def run() -> list[str]:
        gatherer = Gatherer(upper)
        first = [asyncio.create_task(gatherer.submit(Turn("one", number, 3), "abc"[number])) for number in (2, 0)]
        other = await asyncio.gather(*[gatherer.submit(Turn("two", number, 2), "xy"[number]) for number in (1, 0)])
        assert not any(task.done() for task in first) and calls == [["x", "y"]]
        last = await gatherer.submit(Turn("one", 1, 3), "b")
        return [*other, last, *(await asyncio.gather(*first))]

    assert asyncio.run(run()) == ["Y", "X", "B", "C", "A"]
    assert calls == [["x", "y"], ["a", "b", "c"]]


def test_an_error_of_a_batch_reaches_all_of_it() -> None:
    async def fail(items: list[int]) -> Sequence[int]:
        raise ValueError("bad batch")

    async def run() -> list[object]:
        gatherer = Gatherer(fail)
        return await asyncio.gather(*(gatherer.submit(Turn("b", i, 2), i) for i in range(2)), return_exceptions=True)

    assert [str(error) for error in asyncio.run(run())] == ["bad batch"] * 2


def test_a_batch_does_not_wait_for_an_item_that_has_left() -> None:
    async def same(items: list[str]) -> Sequence[str]:
        return [f"{item} of {len(items)}" for item in items]

    async def run() -> list[str]:
        gatherer = Gatherer(same)
        first = asyncio.create_task(gatherer.submit(Turn("one", 0, 3), "a"))
        await asyncio.sleep(0)
        gatherer.leave(Turn("one", 1, 3))
        assert not first.done()
        last = asyncio.create_task(gatherer.submit(Turn("one", 2, 3), "c"))
        for number in range(2):
            gatherer.leave(Turn("nobody comes", number, 2))
        return await asyncio.wait_for(asyncio.gather(first, last), 1)

    assert asyncio.run(run()) == ["a of 2", "c of 2"]
