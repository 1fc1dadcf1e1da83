"""The queue in front of a scorer: what it refuses, whose error it is, and what it says of itself. No torch, no Ray."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from tagpr_rl.prmu.serving.batcher import Batcher, Outcome, QueueFull
from tagpr_rl.prmu.serving.requests import ScoreReply


def test_an_exception_in_a_request_s_place_reaches_its_caller_alone_and_nothing_is_scored_twice() -> None:
    seen: list[list[int]] = []

    def score(requests: Sequence[int]) -> list[Outcome]:
        seen.append(list(requests))
        return [FloatingPointError(f"nan for {n}") if n == 2 else float(n) for n in requests]

    async def run() -> list[float | BaseException]:
        batcher: Batcher[int] = Batcher(score, lambda _: 1, max_wait_s=0.02)
        actual = await asyncio.gather(*[batcher.submit(n) for n in range(4)], return_exceptions=True)
        assert (batcher.stats.failed, batcher.stats.batches) == (1, 1)
        return actual

    first, second, third, last = asyncio.run(run())
    assert (first, second, last) == (0.0, 1.0, 3.0)
    assert isinstance(third, FloatingPointError) and str(third) == "nan for 2"
    assert seen == [[0, 1, 2, 3]]


def test_a_full_queue_refuses_and_takes_again_when_it_is_empty() -> None:
    async def run() -> None:
        batcher: Batcher[int] = Batcher(lambda some: [1.0] * len(some), lambda _: 1, max_wait_s=0.02, max_waiting=3)
        actual = await asyncio.gather(*[batcher.submit(n) for n in range(5)], return_exceptions=True)
        assert actual[:3] == [1.0, 1.0, 1.0]
        assert all(isinstance(error, QueueFull) for error in actual[3:])
        assert str(actual[3]) == "3 requests wait already (the limit is 3)"
        assert (batcher.stats.refused, batcher.stats.requests) == (2, 3)
        assert await batcher.submit(5) == 1.0

    asyncio.run(run())


def test_a_cancelled_request_is_not_scored_and_a_stuck_batch_shows() -> None:
    seen: list[int] = []
    go = threading.Event()

    def score(requests: Sequence[int]) -> list[float]:
        seen.extend(requests)
        go.wait(10)
        return [0.0] * len(requests)

    async def run() -> None:
        batcher: Batcher[int] = Batcher(score, lambda _: 1, max_wait_s=0.01)
        assert batcher.busy_s() == 0.0
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.1)
        late, other = asyncio.create_task(batcher.submit(2)), asyncio.create_task(batcher.submit(3))
        await asyncio.sleep(0.05)
        third = asyncio.create_task(batcher.submit(4))
        await asyncio.sleep(0.05)
        assert batcher.waiting == 1 and 0.05 < batcher.busy_s() < 10  # 2 and 3 are in hand, behind 1
        late.cancel()
        go.set()
        assert await asyncio.gather(first, other, third) == [0.0, 0.0, 0.0]
        assert seen == [1, 3, 4] and batcher.busy_s() == 0.0

    asyncio.run(run())


def test_a_reply_has_a_score_or_a_reason() -> None:
    assert ScoreReply(0.0).reason == ""  # zero is a score
    for score, reason in ((None, ""), (0.5, "late")):
        with pytest.raises(ValueError, match="a reason if and only if no score"):
            ScoreReply(score, reason)


def test_a_batch_is_the_oldest_request_and_those_nearest_in_size() -> None:
    batches: list[list[int]] = []

    def score(requests: Sequence[int]) -> list[float]:
        batches.append(list(requests))
        return [0.0] * len(requests)

    async def run() -> None:
        batcher: Batcher[int] = Batcher(score, lambda size: size, max_wait_s=0.05, max_size=30)
        await asyncio.gather(*map(batcher.submit, (10, 3, 11, 4, 9)))

    asyncio.run(run())
    # 10 is the oldest: 9 fits (2 * 10), 11 would make 3 * 11 = 33 > 30. Then 3 and 4 (2 * 4), and 11 makes 3 * 11.
    assert batches[0] == [10, 11] or batches[0] == [10, 9]
    assert sorted(size for batch in batches for size in batch) == [3, 4, 9, 10, 11]
    assert all(len(batch) * max(batch) <= 30 for batch in batches)
