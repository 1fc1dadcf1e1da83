"""Asks the PRMU actors for scores: a user's own actor first, others when it fails, a reason when none can answer."""

from __future__ import annotations

import asyncio
import itertools
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from tagpr_rl.backend.scoring.coalesce import Coalescer
from tagpr_rl.backend.scoring.prmu_actor import last_line
from tagpr_rl.prmu.serving.requests import ScoreReply, ScoreRequest

Answer = TypeVar("Answer")
PAUSE_S = 0.25
"""Between two attempts, while an actor restarts or its queue is full."""
ANSWER_WITHIN = 0.8
"""Share of an attempt's time after which an actor says why it has no score yet; later the reason would be lost."""
SPILL = 8
"""A request goes to the actor with the fewest open ones if the user's own has more than this above them."""
PER_CALL = 32
"""Requests of one call: an actor scores the first of many while the rest are on their way."""


class ScorerPool:
    """Several PRMU actors as one. `score` never raises for what an actor does, and never waits past its deadline.

    Responses of a user go to the same actor while that is well, so that one actor's cache knows the profile, and to the
    least busy one if that has much more to do than another.
    """

    def __init__(self, names: Sequence[str], timeout_s: float) -> None:
        """`names` of the actors, at least one; `timeout_s` for a response in all, whatever is tried."""
        self._actors = [ray.get_actor(name) for name in names]
        self._names, self._timeout_s = tuple(names), timeout_s
        self._share_s = timeout_s / len(self._actors)
        self._lanes: list[Coalescer[tuple[ScoreRequest, float], ScoreReply]] = [
            Coalescer(partial(self._call, actor), most=PER_CALL) for actor in self._actors
        ]
        self._open = [0] * len(self._actors)
        self._dead: dict[int, str] = {}
        self._down_until = [0.0] * len(self._actors)

    async def score(self, request: ScoreRequest) -> ScoreReply:
        """The score, or after `timeout_s` (sooner when no actor is left, or no other attempt can help) the reason."""
        deadline = time.monotonic() + self._timeout_s
        first = zlib.crc32(request.user_id.encode("utf-8", "replace"))
        reason, tried = "no attempt was made", 0
        while (left := deadline - time.monotonic()) > 0:
            number = self._choose(first, tried)
            if number is None:
                return ScoreReply(None, "; ".join(sorted(set(self._dead.values()))))
            seconds = min(left, self._share_s)
            reply = await self._attempt(number, self._lanes[number].submit((request, seconds)), seconds)
            if not reply.again:
                return reply
            reason, tried = reply.reason, tried + 1
            if deadline - time.monotonic() < 2 * PAUSE_S:  # another attempt would only hide the reason
                break
            await asyncio.sleep(PAUSE_S)
        return ScoreReply(None, f"no score after prmu_timeout_s={self._timeout_s:g}; last: {reason}")

    async def score_together(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply]:
        """Scores that depend on these requests and their order alone, whichever actor computes them, or reasons."""
        deadline = time.monotonic() + self._timeout_s
        reason = "no attempt was made"
        for tried in itertools.count():
            number, left = self._choose(0, tried), deadline - time.monotonic()
            if number is None or left <= 0:
                reason = "; ".join(sorted(set(self._dead.values()))) if number is None else reason
                return [ScoreReply(None, reason)] * len(requests)
            answer = self._actors[number].score_together.remote(list(requests))
            replies = await self._attempt(number, answer, left)
            if isinstance(replies, list):
                return replies
            reason = replies.reason
            await asyncio.sleep(PAUSE_S)
        raise AssertionError

    def _choose(self, first: int, tried: int) -> int | None:
        """The actor's number for attempt `tried`: the user's own first, or the least busy; those in trouble last. None:
        all are dead."""
        count, now = len(self._actors), time.monotonic()
        order = [(first + tried + i) % count for i in range(count)]
        living = [i for i in order if i not in self._dead]
        well = [i for i in living if self._down_until[i] <= now]
        usable = well or living
        if not usable:
            return None
        least = min(usable, key=self._open.__getitem__)
        return least if self._open[usable[0]] > self._open[least] + SPILL else usable[0]

    async def _attempt(self, number: int, answer: Awaitable[Answer], seconds: float) -> Answer | ScoreReply:
        """The actor's answer, or why there is none."""
        name = self._names[number]
        self._open[number] += 1
        try:
            return await asyncio.wait_for(answer, seconds)
        except TimeoutError:
            self._down_until[number] = time.monotonic() + PAUSE_S
            return ScoreReply(None, f"{name} did not answer within {seconds:.1f} s", again=True)
        except ActorDiedError as error:  # for good: an actor that will restart is an ActorUnavailableError
            self._dead[number] = f"{name} is dead: {last_line(error)}"
            return ScoreReply(None, self._dead[number], again=True)
        except RayActorError as error:
            self._down_until[number] = time.monotonic() + 4 * PAUSE_S
            return ScoreReply(None, f"{name} is restarting: {last_line(error)}", again=True)
        except RayTaskError as error:
            return ScoreReply(None, f"{name}: {last_line(error)}")
        finally:
            self._open[number] -= 1

    async def _call(self, actor: Any, items: list[tuple[ScoreRequest, float]]) -> Sequence[ScoreReply]:
        seconds = ANSWER_WITHIN * max(seconds for _, seconds in items)
        return await actor.score_many.remote([request for request, _ in items], seconds)


def watch(
    actors: dict[str, Any],
    *,
    every_s: float,
    limit_s: float,
    stall_s: float,
    start_s: float,
    stopped: Callable[[float], bool],
    report: Callable[[str], None],
) -> None:
    """Until `stopped(every_s)` is true, restart every actor that does not answer `health` within `limit_s` seconds.

    So is one whose batch takes longer than `stall_s`. An actor that Ray restarts by itself, or that is dead for
    good, is left alone; so is a restarted one for `start_s` seconds, in which it loads its model and cannot answer.
    `report` gets a line for each restart.
    """
    starting: dict[str, float] = {}
    while not stopped(every_s):
        calls = {name: actor.health.remote() for name, actor in actors.items()}
        ray.wait(list(calls.values()), num_returns=len(calls), timeout=limit_s)
        for name, call in calls.items():
            down, trouble = _state(call, limit_s, stall_s)
            now = time.monotonic()
            if down:
                starting[name] = now + start_s
            elif trouble and now >= starting.get(name, 0.0):
                report(f"PRMU's scorer {name} {trouble}: restarted")
                starting[name] = now + start_s
                ray.kill(actors[name], no_restart=False)  # Ray kills a stopped process, too
            elif not trouble:
                starting.pop(name, None)


def _state(call: Any, limit_s: float, stall_s: float) -> tuple[bool, str]:
    """From an actor's answer to `health`: whether Ray says it is down, and the trouble that a restart would cure."""
    try:
        health = ray.get(call, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return False, f"did not answer within {limit_s:g} s"
    except RayActorError:
        return True, ""
    return False, f"works on one batch for {health['busy_s']:.0f} s" if health["busy_s"] > stall_s else ""
