"""Chat requests and replies: what teachers and labellers exchange with a language model, and OpenAI's JSON for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class ReplyStatus(StrEnum):
    """How a request ended. Only the text of an OK reply is used."""

    OK = "OK"
    LENGTH = "LENGTH"  # stopped by max_tokens: the text is not whole
    EMPTY = "EMPTY"  # answered without a text
    REFUSED = "REFUSED"  # the endpoint rejects this request (HTTP 4xx, content filter) and would reject it again
    FAILED = "FAILED"  # every retry failed (HTTP 5xx, 429, time-out, a broken body, a text that was not ended)
    BUDGET = "BUDGET"  # not sent: the token or money budget is spent


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat completion. Equal requests to the same model are the same question (see answers.py)."""

    messages: tuple[Mapping[str, str], ...]
    """Messages with the keys "role" and "content"."""
    temperature: float = 0.0
    max_tokens: int = 1024
    seed: int = 0
    """Requests with different seeds ask for different samples."""
    json_schema: Mapping[str, Any] | None = None
    """Structured output: the reply must be JSON of this schema."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply to one request."""

    text: str
    status: ReplyStatus = ReplyStatus.OK
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False
    """The reply comes from the cache and cost nothing."""
    detail: str = ""
    """The reason why the status is not OK."""


class Generator(Protocol):
    """A language model behind an endpoint or in an offline engine."""

    @property
    def name(self) -> str:
        """The model's name, used in the cache's key and on the data card."""

    def generate(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """One reply per request, in order.

        The failure of one request is a status of its reply. A mistake that concerns all requests raises TagprError:
        an unknown host, a wrong key, an unknown model.
        """


def to_body(model: str, request: ChatRequest, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON body of one request."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [dict(message) for message in request.messages],
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
        "seed": request.seed,
    }
    if request.json_schema is not None:
        schema = {"name": "reply", "strict": True, "schema": request.json_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body | dict(extra)
