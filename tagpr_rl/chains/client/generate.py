"""Chats in, replies out: what teachers and labellers ask of a language model, wherever it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class ReplyStatus(StrEnum):
    """How a request ended. Only OK carries a text to use."""

    OK = "OK"
    LENGTH = "LENGTH"  # stopped by max_tokens: the text is not whole
    EMPTY = "EMPTY"  # answered without a text
    REFUSED = "REFUSED"  # the endpoint rejects this request (HTTP 4xx, content filter); asking again is no use
    FAILED = "FAILED"  # every retry failed (HTTP 5xx, 429, time-out, a broken body)
    BUDGET = "BUDGET"  # not asked: the token or money budget was spent


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat completion to ask for. Equal requests to the same model are the same question (see cache.py)."""

    messages: tuple[Mapping[str, str], ...]
    """`{"role", "content"}` each."""
    temperature: float = 0.0
    max_tokens: int = 1024
    seed: int = 0
    """Another seed asks for another sample."""
    json_schema: Mapping[str, Any] | None = None
    """Structured output: the reply must be JSON of this schema."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request."""

    text: str
    status: ReplyStatus = ReplyStatus.OK
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False
    """Read from the cache: nothing was paid."""
    detail: str = ""
    """Why the status is not OK, in words."""


class Generator(Protocol):
    """A language model behind an endpoint or in an offline engine."""

    @property
    def name(self) -> str:
        """The model's name, for the cache's key and the data card."""

    def generate(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """One reply per request, in order. Never raises for one request's failure; raises TagprError for a
        mistake that concerns all of them (unknown host, wrong key, unknown model)."""
