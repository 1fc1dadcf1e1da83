"""The chat completion of OpenAI's API on the wire: a request's body, and what a response's body says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from tagpr_rl.chains.client.generate import ChatRequest, Reply, ReplyStatus

_HTML: Final = re.compile(rb"\s*(<!doctype|<html|<head|<body)", re.IGNORECASE)
_SHOWN = 200


class BadBodyError(Exception):
    """A response whose body is no chat completion; says why in words."""


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
    """The beginning of a body, on one line, for a message."""
    text = " ".join(content[: 4 * _SHOWN].decode("utf-8", "replace").split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."


def read_body(content: bytes) -> tuple[Reply, bool]:
    """(reply, whether it names its token counts) of a response with status 200.

    BadBodyError for HTML, cut or other JSON, an error object, or a completion without a choice. A thinking model's
    separate `reasoning_content` (vLLM, DeepSeek) or `reasoning` (OpenRouter, newer vLLM) is put before the text as
    `<think>...</think>`, which segment.py reads.
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
    """(message, code) of an error's body; the beginning of the body and "" where it has no such form."""
    try:
        value: Any = json.loads(content)
    except (ValueError, RecursionError):
        return excerpt(content), ""
    error = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return excerpt(error["message"].encode("utf-8", "replace")), str(error.get("code") or "")
    return excerpt(content), ""
