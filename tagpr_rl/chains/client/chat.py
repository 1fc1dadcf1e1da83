"""Chat requests and replies: what teachers and labellers exchange with a language model, and OpenAI's JSON for both."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

_HTML: Final = re.compile(rb"\s*(<!doctype|<html|<head|<body)", re.IGNORECASE)
_EXCERPT_CHARACTERS = 200


class ReplyStatus(StrEnum):
    """How a request ended. Only the text of an OK reply is used."""

    OK = "OK"
    LENGTH = "LENGTH"  # stopped by max_tokens: the text is not whole
    EMPTY = "EMPTY"  # answered without a text
    REFUSED = "REFUSED"  # the endpoint rejects this request (HTTP 4xx, content filter) and would reject it again
    FAILED = "FAILED"  # every retry failed (HTTP 5xx, 429, time-out, a broken body)
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


class BadBodyError(Exception):
    """The body of a response is no chat completion; the message says why."""


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


def excerpt(content: bytes) -> str:
    """The beginning of a body on one line, for an error message."""
    text = " ".join(content[: 4 * _EXCERPT_CHARACTERS].decode("utf-8", "replace").split())
    return text if len(text) <= _EXCERPT_CHARACTERS else text[:_EXCERPT_CHARACTERS] + " ..."


def read_body(content: bytes) -> tuple[Reply, bool]:
    """(reply, whether the body has its token counts) of a response with status 200.

    A thinking model's separate `reasoning_content` (vLLM, DeepSeek) or `reasoning` (OpenRouter, newer vLLM) stands
    before the text as `<think>...</think>`, which segment.py reads.

    Raises:
        BadBodyError: the body is HTML, incomplete or other JSON, an error object, or a completion without a choice.
    """
    if _HTML.match(content):
        raise BadBodyError(f"the body is HTML: {excerpt(content)}")
    try:
        value: Any = json.loads(content)
    except (ValueError, RecursionError):
        raise BadBodyError(f"the body is not whole JSON ({len(content)} bytes): {excerpt(content)}") from None
    if not isinstance(value, dict):
        raise BadBodyError(f"the body is no object: {excerpt(content)}")
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise BadBodyError(f"the body holds no choice with a message: {excerpt(content)}")
    text = message.get("content")
    if text is not None and not isinstance(text, str):
        raise BadBodyError(f"the message's content is {type(text).__name__}, not a string: {excerpt(content)}")
    text = text or ""
    thought = message.get("reasoning_content") or message.get("reasoning")
    blank = not text.strip()
    if isinstance(thought, str) and thought.strip() and "</think>" not in text:
        text = f"<think>\n{thought.strip()}\n</think>\n\n{text}"
    status, detail = ReplyStatus.OK, ""
    reason, refusal = choice.get("finish_reason"), message.get("refusal")
    if reason == "content_filter" or (isinstance(refusal, str) and refusal):
        status, detail = ReplyStatus.REFUSED, str(refusal or "stopped by the endpoint's content filter")
    elif reason == "length":
        status, detail = ReplyStatus.LENGTH, "stopped by max_tokens"
    elif blank:
        status, detail = ReplyStatus.EMPTY, "the answer has no text"
    prompt, completion = _tokens(value.get("usage"))
    known = prompt is not None and completion is not None
    return Reply(text, status, prompt or 0, completion or 0, detail=detail), known


def _tokens(usage: Any) -> tuple[int | None, int | None]:
    if not isinstance(usage, dict):
        return None, None
    prompt, completion = (usage.get(f"{name}_tokens") for name in ("prompt", "completion"))
    prompt = prompt if type(prompt) is int and prompt >= 0 else None
    completion = completion if type(completion) is int and completion >= 0 else None
    return prompt, completion


def error_message(content: bytes) -> tuple[str, str]:
    """(message, code) of an error's body; (beginning of the body, "") if the body has another form."""
    try:
        value: Any = json.loads(content)
    except (ValueError, RecursionError):
        return excerpt(content), ""
    error = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return excerpt(error["message"].encode("utf-8", "replace")), str(error.get("code") or "")
    return excerpt(content), ""
