"""One attempt at an OpenAI-compatible endpoint: what came back, whether to try again, and how long to wait before.

The waiting is not a retry library's: all requests to the endpoint share one Retry-After, each attempt first reserves
its price in the ledger, and a call that stops must wake the waiting requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random
from typing import Any

import httpx2
from aiohttp import ClientConnectorError, ClientHttpProxyError, ConnectionTimeoutError
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, OpenAIError, RequestOptions

from tagpr_rl.chains.client.body import BadBodyError, UnfinishedError, error_message, read_body
from tagpr_rl.chains.client.chat import Reply, ReplyStatus
from tagpr_rl.config.endpoints import EndpointBlock, RetryBlock
from tagpr_rl.config.environment import proxy_hint
from tagpr_rl.types import TagprError

CONNECT_S = 20.0
"""Time limit for one connection to be made."""
AGAIN = frozenset({408, 409, 425, 429})
"""HTTP statuses below 500 after which another attempt may succeed."""


def worth_another(status: int) -> bool:
    """Whether another attempt may succeed after this HTTP status."""
    return status in AGAIN or status >= 500


def backoff(attempt: int, rules: RetryBlock, rng: Random) -> float:
    """Seconds to wait before retry number `attempt` (from 0), drawn from [0, min(longest, first * 2^attempt)]."""
    return rng.uniform(0.0, min(rules.longest_wait_s, rules.first_wait_s * 2.0 ** min(attempt, 60)))


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds to wait according to the response's headers, at least 0; None if they do not say.

    `retry-after-ms` (milliseconds, some endpoints) before `Retry-After`, which is a number of seconds or an HTTP date
    (RFC 9110, 10.2.3).
    """
    seconds = _number(headers.get("retry-after-ms"))
    if seconds is not None:
        return seconds / 1000
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - now).total_seconds())


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    # A comparison with NaN is false, and an infinite wait never ends.
    return value if value is not None and 0 <= value < float("inf") else None


def api_key(block: EndpointBlock, environment: Mapping[str, str]) -> str:
    """The endpoint's key from the environment. TagprError if its variable is not set."""
    if block.api_key_env is None:
        return "-"  # the library requires a key; local servers ignore it
    key = environment.get(block.api_key_env, "").strip()
    if not key:
        raise TagprError(
            f"the key for {block.base_url} must be in the environment variable {block.api_key_env}, which is not "
            f"set; export {block.api_key_env}=<key>"
        )
    return key


@dataclass(frozen=True, slots=True)
class Fault:
    """A failed attempt. Another attempt may succeed."""

    detail: str
    charged: bool
    """Whether the provider may have charged for the attempt."""
    wait_s: float | None = None
    """Seconds that the endpoint asks to wait (Retry-After)."""
    connected: bool = True
    """Whether a connection was made."""
    unfinished: bool = False
    """Whether a whole body came whose text is not: another attempt is another order for the provider."""


@dataclass(slots=True)
class Endpoint:
    """An endpoint with its key and an open client, during one call of `generate`."""

    block: EndpointBlock
    key: str = field(repr=False)
    client: AsyncOpenAI
    answered: int = 0
    """Number of requests that the endpoint has answered or rejected."""

    @property
    def proxy(self) -> str:
        """What a message adds if a proxy stands between."""
        return proxy_hint(str(self.block.base_url))

    def hide_key(self, text: str) -> str:
        """`text` without the key: some endpoints repeat it in their messages."""
        return text.replace(self.key, "***") if len(self.key) > 3 else text

    async def send(self, order: str, body: Mapping[str, Any]) -> tuple[Reply, bool] | Reply | Fault:
        """One attempt: (answer, whether its token counts are known), a rejection that costs nothing, or a fault.

        `order`: the idempotency key. TagprError if the error concerns every request.
        """
        seconds = self.block.timeouts.attempt_s
        timeout = Fault(f"no answer within {seconds:g} s (timeouts.attempt_s)", charged=True)
        try:
            async with asyncio.timeout(seconds):
                # The raw response, because the library's own parser accepts a page of HTML as an answer.
                # A server that honours the key charges once for a question, however often the answer was lost.
                options: RequestOptions = {"headers": {"Idempotency-Key": order, "Accept-Encoding": "identity"}}
                response = await self.client.post(
                    "/chat/completions", cast_to=httpx2.Response, body=body, options=options
                )
                return read_body(response.content)
        except TimeoutError:
            return timeout
        except APIStatusError as error:
            return await self._rejected(error)
        except APIConnectionError as error:  # the library's time-outs are of this kind, too
            cause = _root(error)
            if isinstance(cause, ClientConnectorError | ConnectionTimeoutError):
                return Fault(f"no connection ({cause}){self.proxy}", charged=False, connected=False)
            if isinstance(cause, TimeoutError):
                return timeout
            if isinstance(cause, BadBodyError):  # its length, while it came
                return Fault(str(cause), charged=True)
            if isinstance(cause, ClientHttpProxyError):  # the proxy's answer to CONNECT: the endpoint saw nothing
                self._proxy_refused(cause.status)
                return Fault(f"the proxy answered HTTP {cause.status}{self.proxy}", charged=False, connected=False)
            return Fault(f"the connection broke ({type(cause).__name__}: {cause}){self.proxy}", charged=True)
        except BadBodyError as error:
            return Fault(
                self.hide_key(f"{error}{self.proxy}"), charged=True, unfinished=isinstance(error, UnfinishedError)
            )
        except OpenAIError as error:
            return Fault(self.hide_key(f"{type(error).__name__}: {error}"), charged=True)

    async def _rejected(self, error: APIStatusError) -> Reply | Fault:
        """The result of an HTTP status of 300 or more."""
        status, block = error.status_code, self.block
        message, code = error_message(error.response.content)
        message = self.hide_key(message)
        where = f"{block.base_url} (model {block.model}) answered HTTP {status}"
        if not self.answered:
            self._proxy_refused(status)
        if status == 401 or (status == 403 and not self.answered):
            variable = f"the key in ${block.api_key_env}" if block.api_key_env else "api_key_env (none is named)"
            raise TagprError(
                f"{where}: it does not accept the key; check {variable} and what the key may do{self.proxy}"
            )
        if status == 402 or code == "insufficient_quota":
            raise TagprError(f"{where}: the account has no credit left ({message}); answers so far are kept")
        if status == 404 or 300 <= status < 400:
            raise TagprError(
                f"{where}: no such model or path ({message}); check `model`{await self._models()} and that base_url "
                f"ends where the endpoint's API begins (mostly /v1){self.proxy}"
            )
        if worth_another(status):
            wait = retry_after(error.response.headers, datetime.now(UTC))
            return Fault(f"HTTP {status}: {message}{self.proxy}", charged=False, wait_s=wait)
        return Reply("", ReplyStatus.REFUSED, detail=f"HTTP {status}: {message}{self.proxy}")

    def _proxy_refused(self, status: int) -> None:
        """TagprError if a proxy stands between and `status` is one with which proxies refuse a request."""
        if status == 407 or (status == 403 and self.proxy):
            raise TagprError(
                f"{self.block.base_url} (model {self.block.model}): HTTP {status} "
                f"{'of a proxy' if status == 407 else 'of a proxy or of the endpoint'}{self.proxy}"
            )

    async def _models(self) -> str:
        """The endpoint's models in brackets, for a message; "" if it does not list them."""
        try:
            async with asyncio.timeout(CONNECT_S):
                names = [model.id async for model in self.client.models.list()]
        except (OpenAIError, TimeoutError, ValueError, AttributeError, TypeError):
            return ""
        return f" (the endpoint has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""


def _root(error: BaseException) -> BaseException:
    """The first error of a chain of causes, or the first `ClientConnectorError` in it."""
    while error.__cause__ is not None and not isinstance(error, ClientConnectorError):
        error = error.__cause__
    return error
