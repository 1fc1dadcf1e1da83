"""A `Generator` for any OpenAI-compatible endpoint: limits, retries, budget, and an answer cache in front.

What may be charged twice: an answer that the server sent and a kill kept from being committed. That is at most one
for each request in flight (`concurrency`); nothing that was committed is ever asked again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any

import httpx2
from aiohttp import ClientConnectorError, ConnectionTimeoutError
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, DefaultAioHttpClient, OpenAIError, RequestOptions
from rich.console import Console

from tagpr_rl.chains.client.answers import AnswerCache, Questions
from tagpr_rl.chains.client.chat import BadBodyError, error_message, read_body, to_body
from tagpr_rl.chains.client.generate import ChatRequest, Reply, ReplyStatus
from tagpr_rl.chains.client.progress import AskProgress
from tagpr_rl.chains.client.retry import backoff, retry_after, worth_another
from tagpr_rl.chains.client.spend import Ledger, most_tokens
from tagpr_rl.config.endpoints import EndpointBlock
from tagpr_rl.types import TagprError

CONNECT_S = 20.0
"""Time for one connection to be made."""


class OpenAIGenerator:
    """One model behind one address."""

    def __init__(
        self,
        block: EndpointBlock,
        cache: AnswerCache,
        *,
        purse: str,
        console: Console | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`purse`: name that the budget's spending is recorded under in the cache's file. TagprError where the
        key's environment variable is not set."""
        assert block.kind == "openai" and block.base_url and block.model
        self.block, self.cache, self.purse, self.console = block, cache, purse, console
        self._key = _api_key(block, os.environ if environment is None else environment)
        self._rng = Random()  # jitter is meant to differ between processes

    @property
    def name(self) -> str:
        """The model's name, without the address."""
        return str(self.block.model)

    def generate(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """One reply per request, in order; known answers come from the cache. See `Generator`."""
        questions = Questions(self.name, requests, self.cache, self.block.extra_body)
        answers: dict[bytes, Reply] = {}
        if questions.open:
            answers = asyncio.run(self._ask(questions.open))
        return questions.replies(answers)

    async def _ask(self, questions: Mapping[bytes, ChatRequest]) -> dict[bytes, Reply]:
        n = min(self.block.concurrency, len(questions))
        attempt = self.block.timeouts.attempt_s
        # The library's aiohttp transport: a third of the default transport's time per request.
        http = DefaultAioHttpClient(
            timeout=httpx2.Timeout(attempt, connect=min(CONNECT_S, attempt)),
            limits=httpx2.Limits(max_connections=n, max_keepalive_connections=n),
        )
        client = AsyncOpenAI(base_url=self.block.base_url, api_key=self._key, max_retries=0, http_client=http)
        async with client:
            with AskProgress(self.name, len(questions), self.console) as progress:
                call = _Call(self, client, questions, progress)
                tasks = [asyncio.create_task(call.work()) for _ in range(n)]
                try:
                    await asyncio.wait(tasks)
                except asyncio.CancelledError:  # Ctrl-C: what is in flight is paid for, so it is waited for
                    call.halt(ReplyStatus.FAILED, "interrupted")
                    await asyncio.wait(tasks)
                    raise
        for task in tasks:
            task.result()
        if call.mistake is not None:
            raise call.mistake
        rest = Reply("", call.halted or ReplyStatus.FAILED, detail=call.reason)
        return {key: call.answers.get(key, rest) for key in questions}

    def hide_key(self, text: str) -> str:
        """`text` without the key, which some endpoints repeat in their messages."""
        return text.replace(self._key, "***") if len(self._key) > 3 else text


def _api_key(block: EndpointBlock, environment: Mapping[str, str]) -> str:
    if block.api_key_env is None:
        return "-"  # the library wants one; local servers do not look
    key = environment.get(block.api_key_env, "").strip()
    if not key:
        raise TagprError(
            f"the key for {block.base_url} is wanted in the environment variable {block.api_key_env}, which is not "
            f"set; export {block.api_key_env}=<key>"
        )
    return key


@dataclass(frozen=True, slots=True)
class _Fault:
    """A failed attempt that is worth another."""

    detail: str
    charged: bool
    """The provider may have charged for it."""
    wait_s: float | None = None
    """Retry-After."""
    connected: bool = True


@dataclass
class _Call:
    """The state of one call of `generate`, shared by its workers."""

    owner: OpenAIGenerator
    client: AsyncOpenAI
    questions: Mapping[bytes, ChatRequest]
    progress: AskProgress
    answers: dict[bytes, Reply] = field(default_factory=dict)
    halted: ReplyStatus | None = None
    """Status of the questions that are not asked any more."""
    reason: str = ""
    mistake: TagprError | None = None
    not_before: float = 0.0
    """Loop time before which no attempt starts (Retry-After)."""
    answered: int = 0
    unreachable: int = 0
    """Requests in a row that found no connection with any attempt."""

    def __post_init__(self) -> None:
        block = self.owner.block
        self.queue = iter(self.questions.items())
        self.ledger = Ledger(block.budget, block.prices, self.owner.cache.spent(self.owner.purse))
        self.before = self.ledger.spent.money
        self.loop = asyncio.get_running_loop()
        self.stop, self.settled = asyncio.Event(), asyncio.Event()
        total = block.timeouts.total_s
        self.ends = self.loop.time() + total if total is not None else float("inf")

    def halt(self, status: ReplyStatus, reason: str, mistake: TagprError | None = None) -> None:
        """Start no further attempt. The first reason counts."""
        if self.halted is None:
            self.halted, self.reason, self.mistake = status, reason, mistake
        self.stop.set()
        self.settled.set()

    async def work(self) -> None:
        """Answer questions until there are none."""
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
            self.halt(ReplyStatus.FAILED, "a mistake of ours in another request")
            raise

    async def answer(self, key: bytes, request: ChatRequest) -> Reply | None:
        """The reply to one question, committed; None when the call stopped first."""
        known = self.owner.cache.get_many([key])  # another process may have asked meanwhile
        if known:
            return known[key]
        block = self.owner.block
        body = to_body(self.owner.name, request, block.extra_body)
        bound = most_tokens(request)
        deadline = self.loop.time() + block.timeouts.request_s
        fault: _Fault | None = None
        reached = False
        asked = 0
        for retry in range(-1, block.retries.times):
            wait = 0.0 if retry < 0 else backoff(retry, block.retries, self.owner._rng)
            if not await self.pause(wait, deadline):
                break
            if not await self.hold(bound):
                return None
            asked += 1
            outcome = await self.attempt(key, body, bound)
            if isinstance(outcome, Reply):
                self.unreachable = 0
                return outcome
            fault = outcome
            reached = reached or fault.connected
            self.obey(fault.wait_s)
        if self.loop.time() >= self.ends:
            self.halt(ReplyStatus.FAILED, f"timeouts.total_s of {block.timeouts.total_s} s is over")
        if self.halted is not None:
            return None
        detail = f"{asked} attempt(s), no answer; the last: {fault.detail if fault else '-'}"
        if reached:
            self.unreachable = 0
        else:
            self.lost(detail)
        return Reply("", ReplyStatus.FAILED, detail=detail)

    def obey(self, wait: float | None) -> None:
        """Let no attempt at this endpoint start for `wait` seconds. TagprError when that is too long."""
        most = self.owner.block.timeouts.request_s
        if wait is not None and wait > most:
            raise TagprError(
                f"{self.owner.block.base_url} asks to wait {wait:.0f} s (Retry-After), longer than "
                f"timeouts.request_s ({most:g}); raise it or run again later: answers so far are kept"
            )
        self.not_before = max(self.not_before, self.loop.time() + (wait or 0.0))

    def lost(self, detail: str) -> None:
        """A request found no connection. TagprError when none ever did, or none of a whole round does any more."""
        self.unreachable += 1
        if not self.answered or self.unreachable >= self.owner.block.concurrency:
            raise TagprError(
                f"no connection to {self.owner.block.base_url}: {detail}. Check base_url, the network and that the "
                "server runs; answers so far are kept, so run again"
            )

    async def pause(self, wait: float, deadline: float) -> bool:
        """Wait for the backoff and for the endpoint's Retry-After; False where there is no time, or the call stops."""
        until = self.loop.time() + wait
        while True:
            if self.not_before > until:  # not all of the waiting ones at the same instant
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
        """Set the bound aside, after others in flight have settled where it must be; False: the budget is spent."""
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

    async def attempt(self, key: bytes, body: dict[str, Any], bound: tuple[int, int]) -> Reply | _Fault:
        """One request over the wire; an answer is committed together with its cost before it is returned."""
        answers: list[tuple[bytes, Reply]] = []
        used: tuple[int, int] | None = None
        charged = True  # also when this is cancelled on the way
        try:
            outcome = await self.send(key, body)
            if isinstance(outcome, _Fault):
                charged = outcome.charged
                return outcome
            self.answered += 1
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
                self.owner.cache.put(self.owner.name, answers, self.owner.purse, cost)

    async def send(self, key: bytes, body: dict[str, Any]) -> tuple[Reply, bool] | Reply | _Fault:
        """(answer, whether its token counts are known), a rejection that costs nothing, or what went wrong.
        TagprError where it concerns every request."""
        seconds = self.owner.block.timeouts.attempt_s
        late = _Fault(f"no answer within {seconds:g} s (timeouts.attempt_s)", charged=True)
        try:
            async with asyncio.timeout(seconds):
                # The response as it came: the library's own parsing takes a page of HTML for an answer.
                # A server that honours the key charges once for a question, however often its answer was lost.
                options: RequestOptions = {"headers": {"Idempotency-Key": key.hex()}}
                response = await self.client.post(
                    "/chat/completions", cast_to=httpx2.Response, body=body, options=options
                )
                return read_body(response.content)
        except TimeoutError:
            return late
        except APIStatusError as error:
            return await self.rejected(error)
        except APIConnectionError as error:  # the library's time-outs are of this kind, too
            cause = _root(error)
            if isinstance(cause, ClientConnectorError | ConnectionTimeoutError):
                return _Fault(f"no connection ({cause})", charged=False, connected=False)
            if isinstance(cause, TimeoutError):
                return late
            return _Fault(f"the connection broke ({type(cause).__name__}: {cause})", charged=True)
        except BadBodyError as error:
            return _Fault(self.owner.hide_key(str(error)), charged=True)
        except OpenAIError as error:
            return _Fault(self.owner.hide_key(f"{type(error).__name__}: {error}"), charged=True)

    async def rejected(self, error: APIStatusError) -> Reply | _Fault:
        """An HTTP status of 300 or more."""
        status, block = error.status_code, self.owner.block
        message, code = error_message(error.response.content)
        message = self.owner.hide_key(message)
        where = f"{block.base_url} (model {block.model}) answered HTTP {status}"
        if status == 401 or (status == 403 and not self.answered):
            variable = f"the key in ${block.api_key_env}" if block.api_key_env else "api_key_env (none is named)"
            raise TagprError(f"{where}: it does not accept the key; check {variable} and what the key may do")
        if status == 402 or code == "insufficient_quota":
            raise TagprError(f"{where}: the account has no credit left ({message}); answers so far are kept")
        if status == 404 or 300 <= status < 400:
            raise TagprError(
                f"{where}: no such model or path ({message}); check `model`{await self.models()} and that base_url "
                "ends where the endpoint's API begins (mostly /v1)"
            )
        if worth_another(status):
            wait = retry_after(error.response.headers, datetime.now(UTC))
            return _Fault(f"HTTP {status}: {message}", charged=False, wait_s=wait)
        return Reply("", ReplyStatus.REFUSED, detail=f"HTTP {status}: {message}")

    async def models(self) -> str:
        """ " (the endpoint has: ...)" where it says which models it has."""
        try:
            async with asyncio.timeout(CONNECT_S):
                names = [model.id async for model in self.client.models.list()]
        except (OpenAIError, TimeoutError, ValueError, AttributeError, TypeError):
            return ""
        return f" (the endpoint has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""


def _root(error: BaseException) -> BaseException:
    """What an error was made from, at the beginning of its chain; our own connector's type where it is in it."""
    while error.__cause__ is not None and not isinstance(error, ClientConnectorError):
        error = error.__cause__
    return error
