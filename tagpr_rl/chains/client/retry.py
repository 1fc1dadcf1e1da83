"""When to ask again: exponential backoff with full jitter, and the server's Retry-After.

Ours, not a library's: the wait is shared by all requests to the endpoint, every attempt first sets its price aside in
the ledger, and a run that stops must wake the sleepers. A retry library would keep ten lines of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random

from tagpr_rl.config.endpoints import RetryBlock

AGAIN = frozenset({408, 409, 425, 429})
"""HTTP statuses below 500 that are worth another attempt."""


def worth_another(status: int) -> bool:
    """Whether another attempt may go better."""
    return status in AGAIN or status >= 500


def backoff(attempt: int, rules: RetryBlock, rng: Random) -> float:
    """Seconds to wait before retry number `attempt` (from 0), drawn from [0, min(longest, first * 2^attempt)]."""
    return rng.uniform(0.0, min(rules.longest_wait_s, rules.first_wait_s * 2.0 ** min(attempt, 60)))


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds to wait by the response's headers, at least 0; None where they do not say.

    `retry-after-ms` (milliseconds, some endpoints) before `Retry-After`, which is a number of seconds or an HTTP date
    (RFC 9110, 10.2.3).
    """
    found = _number(headers.get("retry-after-ms"))
    if found is not None:
        return found / 1000
    text = headers.get("retry-after")
    found = _number(text)
    if found is not None or text is None:
        return found
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
    # NaN compares false; "infinity" is no wait that ends.
    return value if value is not None and 0 <= value < float("inf") else None
