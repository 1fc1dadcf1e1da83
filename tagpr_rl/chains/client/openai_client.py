"""A `Generator` for any OpenAI-compatible endpoint: limits, retries, budget, and an answer cache in front.

A committed answer is never asked for again; a reply that is cut, empty or filtered is, by the next call. If the
process is killed, the requests in flight (at most `concurrency`) may be charged a second time, because their answers
were not committed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx2
from openai import AsyncOpenAI, DefaultAioHttpClient
from rich.console import Console

from tagpr_rl.chains.client.answers import AnswerCache, Questions
from tagpr_rl.chains.client.attempt import CONNECT_S, Endpoint, Fault, api_key, backoff
from tagpr_rl.chains.client.body import limit_body
from tagpr_rl.chains.client.chat import ChatRequest, Reply, ReplyStatus, to_body
from tagpr_rl.chains.client.spend import Ledger, most_tokens
from tagpr_rl.chains.client.usage import ReplyProgress
from tagpr_rl.config.endpoints import EndpointBlock
from tagpr_rl.config.environment import go_direct
from tagpr_rl.types import TagprError


class OpenAIGenerator:
    """One model behind one address."""

    def __init__(
        self,
        block: EndpointBlock,
        cache: AnswerCache,
        *,
        account: str,
        console: Console | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`account`: the name under which the cache's file records what the budget has spent.

        TagprError if the environment variable of the key is not set.
        """
        assert block.kind == "openai" and block.base_url and block.model
        self.block, self.cache, self.account, self.console = block, cache, account, console
        self._key = api_key(block, os.environ if environment is None else environment)
        self._rng = Random()  # without a seed, so that processes wait for different times

    @property
    def name(self) -> str:
        """The model's name, without the address."""
        return str(self.block.model)

    def generate(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """One reply per request, in order; known answers come from the cache. See `Generator`."""
        # Two endpoints may have different models of one name.
        extra = {"base_url": self.block.base_url, **self.block.extra_body}
        questions = Questions(self.name, requests, self.cache, extra)
        answers: dict[bytes, Reply] = {}
        if questions.open:
            answers = asyncio.run(self._ask(questions.open))
        return questions.replies(answers)

    async def _ask(self, questions: Mapping[bytes, ChatRequest]) -> dict[bytes, Reply]:
        go_direct(str(self.block.base_url))
        n = min(self.block.concurrency, len(questions))
        attempt = self.block.timeouts.attempt_s
        # The library's aiohttp transport takes a third of the default transport's time per request.
        http = DefaultAioHttpClient(
            timeout=httpx2.Timeout(attempt, connect=min(CONNECT_S, attempt)),
            limits=httpx2.Limits(max_connections=n, max_keepalive_connections=n),
            event_hooks={"response": [limit_body]},
        )
        client = AsyncOpenAI(base_url=self.block.base_url, api_key=self._key, max_retries=0, http_client=http)
        async with client:
            with ReplyProgress(self.name, len(questions), self.console) as progress:
                call = _Call(self, Endpoint(self.block, self._key, client), questions, progress)
                tasks = [asyncio.create_task(call.work()) for _ in range(n)]
                try:
                    await asyncio.wait(tasks)
                except asyncio.CancelledError:  # Ctrl-C: requests in flight are paid for, so wait for their answers
                    call.halt(ReplyStatus.FAILED, "interrupted")
                    await asyncio.wait(tasks)
                    raise
        for task in tasks:
            task.result()
        if call.mistake is not None:
            raise call.mistake
        rest = Reply("", call.halted or ReplyStatus.FAILED, detail=call.reason)
        return {key: call.answers.get(key, rest) for key in questions}


@dataclass
class _Call:
    """The state of one call of `generate`, shared by its workers."""

    owner: OpenAIGenerator
    endpoint: Endpoint
    questions: Mapping[bytes, ChatRequest]
    progress: ReplyProgress
    answers: dict[bytes, Reply] = field(default_factory=dict)
    halted: ReplyStatus | None = None
    """Status of the remaining questions once the call has stopped."""
    reason: str = ""
    mistake: TagprError | None = None
    not_before: float = 0.0
    """Loop time before which no attempt starts (Retry-After)."""
    unreachable: int = 0
    """Number of consecutive requests none of whose attempts had a connection."""

    def __post_init__(self) -> None:
        block = self.owner.block
        self.queue = iter(self.questions.items())
        self.ledger = Ledger(block.budget, block.prices, self.owner.cache.spent(self.owner.account))
        self.before = self.ledger.spent.money
        self.loop = asyncio.get_running_loop()
        self.stop, self.settled = asyncio.Event(), asyncio.Event()
        total = block.timeouts.total_s
        self.ends = self.loop.time() + total if total is not None else float("inf")

    def halt(self, status: ReplyStatus, reason: str, mistake: TagprError | None = None) -> None:
        """Stop the call: start no further attempt. The first reason is reported."""
        if self.halted is None:
            self.halted, self.reason, self.mistake = status, reason, mistake
        self.stop.set()
        self.settled.set()

    async def work(self) -> None:
        """One worker: answer questions until none is left or the call stops."""
        try:
            for key, request in self.queue:
                reply = await self.answer(key, request) if self.halted is None else None
                if reply is None:
                    return
                self.answers[key] = reply
                self.progress.add(reply, self.ledger.spent.money - self.before)
        except TagprError as mistake:
            self.halt(ReplyStatus.FAILED, str(mistake), mistake)
        except BaseException:
            self.halt(ReplyStatus.FAILED, "an internal error in another request")
            raise

    async def answer(self, key: bytes, request: ChatRequest) -> Reply | None:
        """The committed reply to one question; None if the call stopped first."""
        known = self.owner.cache.get_many([key])  # another process may have committed the answer meanwhile
        if known:
            return known[key]
        block = self.owner.block
        body = to_body(self.owner.name, request, block.extra_body)
        bound = most_tokens(request)
        deadline = self.loop.time() + block.timeouts.request_s
        fault: Fault | None = None
        reached = False
        attempts = unfinished = 0
        for retry in range(-1, block.retries.times):
            wait = 0.0 if retry < 0 else backoff(retry, block.retries, self.owner._rng)
            if not await self.pause(wait, deadline):
                break
            if not await self.hold(bound):
                return None
            attempts += 1
            order = f"{key.hex()}-{unfinished}" if unfinished else key.hex()
            outcome = await self.attempt(key, order, body, bound)
            if isinstance(outcome, Reply):
                self.unreachable = 0
                return outcome
            fault = outcome
            reached = reached or fault.connected
            unfinished += fault.unfinished
            self.obey(fault.wait_s)
        if self.loop.time() >= self.ends:
            self.halt(ReplyStatus.FAILED, f"timeouts.total_s of {block.timeouts.total_s} s is over")
        if self.halted is not None:
            return None
        detail = f"{attempts} attempt(s), no answer; the last: {fault.detail if fault else '-'}"
        if reached:
            self.unreachable = 0
        else:
            self.count_unreachable(detail)
        return Reply("", ReplyStatus.FAILED, detail=detail)

    def obey(self, wait: float | None) -> None:
        """Start no attempt at this endpoint for `wait` seconds. TagprError if that exceeds timeouts.request_s."""
        most = self.owner.block.timeouts.request_s
        if wait is not None and wait > most:
            raise TagprError(
                f"{self.owner.block.base_url} asks to wait {wait:.0f} s (Retry-After), longer than "
                f"timeouts.request_s ({most:g}); raise it or run again later: answers so far are kept"
            )
        self.not_before = max(self.not_before, self.loop.time() + (wait or 0.0))

    def count_unreachable(self, detail: str) -> None:
        """Count a request without a connection.

        TagprError if the endpoint never answered, or if `concurrency` consecutive requests had no connection.
        """
        self.unreachable += 1
        if not self.endpoint.answered or self.unreachable >= self.owner.block.concurrency:
            raise TagprError(
                f"no connection to {self.owner.block.base_url}: {detail}. Check base_url, the network and that the "
                "server runs; answers so far are kept, so run again"
            )

    async def pause(self, wait: float, deadline: float) -> bool:
        """Wait for the backoff and the endpoint's Retry-After. False if there is no time left or the call stops."""
        until = self.loop.time() + wait
        while True:
            if self.not_before > until:  # at different times, so that the waiting requests do not all start at once
                until = self.not_before + self.owner._rng.uniform(0, self.owner.block.retries.first_wait_s)
            if self.halted is not None or until > deadline or max(until, self.loop.time()) >= self.ends:
                return False
            left = until - self.loop.time()
            if left <= 0:
                return True
            try:
                await asyncio.wait_for(self.stop.wait(), left)
            except TimeoutError:
                continue

    async def hold(self, bound: tuple[int, int]) -> bool:
        """Reserve `bound` (prompt and completion tokens) in the ledger; False if the budget is spent or the call stops.

        If the budget does not cover the bound yet, this waits until requests in flight have ended.
        """
        while self.halted is None:
            if self.ledger.hold(*bound):
                return True
            if not self.ledger.in_flight:
                self.halt(
                    ReplyStatus.BUDGET,
                    f"not asked: {self.ledger.describe()}, and the next request may need {sum(bound)} tokens; raise "
                    "the budget and run again",
                )
                return False
            self.settled.clear()
            await self.settled.wait()
        return False

    async def attempt(self, key: bytes, order: str, body: dict[str, Any], bound: tuple[int, int]) -> Reply | Fault:
        """Send one request. The answer is committed together with its cost before it is returned."""
        answers: list[tuple[bytes, Reply]] = []
        used: tuple[int, int] | None = None
        charged = True  # also if this task is cancelled while it waits
        try:
            outcome = await self.endpoint.send(order, body)
            if isinstance(outcome, Fault):
                charged = outcome.charged
                return outcome
            self.endpoint.answered += 1
            if isinstance(outcome, Reply):
                charged = False
                return outcome
            reply, known = outcome
            used = (reply.prompt_tokens, reply.completion_tokens) if known else None
            answers = [(key, reply)]
            return reply
        except TagprError:
            charged = False
            raise
        finally:
            cost = self.ledger.release(bound, used, charged=charged)
            self.settled.set()
            if charged:
                self.owner.cache.put(self.owner.name, answers, self.owner.account, cost)
