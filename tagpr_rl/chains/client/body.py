"""Reads the body of a chat completion: the text in its many forms, why it stopped, and whether it is of use."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import httpx2

from tagpr_rl.chains.client.chat import Reply, ReplyStatus
from tagpr_rl.chains.client.leftovers import thought_and_rest, visible, without_thought
from tagpr_rl.tags.schema import THINK
from tagpr_rl.tags.thoughts import split_thought

MOST_BYTES: Final = 16 << 20
"""Longest body: ten times the longest completion of any model."""
MOST_COMPRESSED_BYTES: Final = 256 << 10
_HTML: Final = re.compile(rb"\s*(<!doctype|<html|<head|<body)", re.IGNORECASE)
_EXCERPT_CHARACTERS = 200
_MOST_TOKENS: Final = 1 << 31  # a larger count in a body is no count
_STOPS: Final[Mapping[str, ReplyStatus]] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete"), ReplyStatus.OK),
    **dict.fromkeys(
        ("length", "max_tokens", "max_length", "model_length", "token_limit", "model_context_window_exceeded"),
        ReplyStatus.LENGTH,
    ),
    **dict.fromkeys(
        (
            "content_filter", "content_filtered", "safety", "refusal", "recitation", "blocklist", "prohibited_content",
            "spii", "sensitive", "guardrail_intervened", "error_toxic",
        ),
        ReplyStatus.REFUSED,
    ),
}  # fmt: skip
"""Stop reasons of OpenAI and vLLM, of TGI, Anthropic, Gemini, Mistral, Cohere, Zhipu and Bedrock behind a gateway, in
lower case with underscores. A text that stopped for another reason (abort, error, none) is not known to be whole."""
_THOUGHT_KEYS: Final = (
    "reasoning_content", "reasoning", "reasoning_details", "reasoning_text", "thinking", "thinking_blocks",
)  # fmt: skip
"""Where servers put a thinking model's thought beside the answer; the first that holds text counts."""
_TEXT_KEYS: Final = ("text", "output_text", "content", "value", "parts")
_THOUGHT_TEXT_KEYS: Final = ("text", "content", "thinking", "reasoning", "summary", "refusal", "value", "parts")
_ONLY_A_THOUGHT = (
    "only a thought came, no answer: does the server's reasoning parser take the whole text, or is max_tokens too "
    "small for thought and answer?"
)


class BadBodyError(Exception):
    """The body of a response is no whole chat completion; the message says why."""


class UnfinishedError(BadBodyError):
    """A whole chat completion, but its text broke off: the same question may be answered at another try."""


class LimitedBody(httpx2.AsyncByteStream):
    """The bytes of `stream`; BadBodyError after `limit` of them."""

    def __init__(self, stream: httpx2.AsyncByteStream, limit: int) -> None:
        self._stream, self._limit = stream, limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received = 0
        async for chunk in self._stream:
            received += len(chunk)
            if received > self._limit:
                raise BadBodyError(f"the body has more than {self._limit >> 10} KiB")
            yield chunk

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()


async def limit_body(response: httpx2.Response) -> None:
    """A hook of the HTTP client: no reply fills the memory. Requests ask for bodies that are not compressed; one that
    is all the same may hold a thousand times its size."""
    plain = response.headers.get("content-encoding", "identity") == "identity"
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = LimitedBody(response.stream, MOST_BYTES if plain else MOST_COMPRESSED_BYTES)


def excerpt(content: bytes) -> str:
    """The beginning of a body on one line, for an error message."""
    text = " ".join(content[: 4 * _EXCERPT_CHARACTERS].decode("utf-8", "replace").split())
    return text if len(text) <= _EXCERPT_CHARACTERS else text[:_EXCERPT_CHARACTERS] + " ..."


def read_body(content: bytes) -> tuple[Reply, bool]:
    """(reply, whether the body has its token counts) of a response with status 200.

    A thinking model's separate thought stands before the text as `<think>...</think>`, which segment.py reads.

    Raises:
        BadBodyError: the body is HTML, incomplete or other JSON, an error object, a completion without a choice or
            with a content of unknown form.
        UnfinishedError: the text did not stop by itself, at the token limit or at a filter.
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
    places = [place for place in (value, choice, message) if isinstance(place, dict)]
    if error := next((place["error"] for place in places if place.get("error")), None):
        raise UnfinishedError(f"the body holds an error: {_shown(error)}")
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise BadBodyError(f"the body holds no choice with a message: {excerpt(content)}")
    parts = message.get("content")
    text = _text(parts) or _text(message.get("output_text"))
    thoughts = (*(message.get(key) for key in _THOUGHT_KEYS), _parts_of(parts, _is_thought))
    thought = next((found for value in thoughts if (found := _thought(value))), "")
    refusal = _thought(message.get("refusal")) or _thought(_parts_of(parts, _is_refusal))
    stop, native = (choice.get(key) for key in ("finish_reason", "native_finish_reason"))
    if _status(native) not in (None, ReplyStatus.OK):  # a gateway may call every end "stop"
        stop = native
    status, detail = judge(text, stop, only_thought=bool(thought))
    if refusal:
        status, detail = ReplyStatus.REFUSED, refusal
    prompt, completion = _tokens(value.get("usage"))
    known = prompt is not None and completion is not None
    whole = _joined(thought, text)
    if not (whole + detail).isascii() and any("\ud800" <= c <= "\udfff" for c in whole + detail):
        raise UnfinishedError("the text holds half a character (a lone surrogate), which no file can hold")
    return Reply(whole, status, prompt or 0, completion or 0, detail=detail), known


def judge(text: str, stop: Any, *, only_thought: bool = False) -> tuple[ReplyStatus, str]:
    """(status, its reason) of a text that stopped for the reason `stop`. `only_thought`: a thought came apart from it.

    UnfinishedError if `stop` is no known reason to end a text.
    """
    status = _status(stop)
    if status is None:
        raise UnfinishedError(
            f"the text stopped for the reason {stop!r} ({len(text)} characters came): it is not known to be whole"
        )
    if status is ReplyStatus.LENGTH:
        return status, "stopped by max_tokens"
    if status is ReplyStatus.REFUSED:
        return status, f"stopped by the endpoint's content filter ({stop})"
    if not visible(without_thought(text)):
        thought = only_thought or split_thought(text) != ("", text)
        return ReplyStatus.EMPTY, _ONLY_A_THOUGHT if thought else "the answer has no text"
    return status, ""


def _status(stop: Any) -> ReplyStatus | None:
    name = stop.strip().lower().replace("-", "_") if isinstance(stop, str) else ""
    return _STOPS.get(name.removeprefix("finish_reason_"))


def _joined(thought: str, text: str) -> str:
    """The text with a thought that came apart from it; a thought inside the text is the same one."""
    parts = thought_and_rest(text)
    if not visible(thought) or parts is None or parts[0]:
        return text
    rest = text if split_thought(text) == ("", text) else parts[1]
    return f"<{THINK}>\n{visible(thought)}\n</{THINK}>\n\n{rest}"


def _text(content: Any) -> str:
    """The text of a content: a string, null, a part, a list of parts, or the JSON object that was asked for.

    BadBodyError for another form, and for a part that is no text (an image, a call of a tool).
    """
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list):
        return "".join(map(_text, content))
    if not isinstance(content, dict):
        raise BadBodyError(f"the message's content is {type(content).__name__}, not a text: {_shown(content)}")
    kind = content.get("type")
    if _is_thought(content) or _is_refusal(content):
        return ""
    if kind in (None, "text", "output_text"):
        key = next((key for key in _TEXT_KEYS if key in content), None)
        if key is not None:
            return _text(content[key])
        if kind is None:
            return json.dumps(content) if content else ""  # some servers parse structured output themselves
    raise BadBodyError(f"the message's content has a part that is no text: {_shown(content)}")


def _parts_of(content: Any, wanted: Callable[[Any], bool]) -> list[Any]:
    return [part for part in (content if isinstance(content, list) else [content]) if wanted(part)]


def _is_thought(part: Any) -> bool:
    kind = str(part.get("type")) if isinstance(part, dict) else ""
    return any(word in kind for word in ("think", "reason"))


def _is_refusal(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "refusal"


def _thought(value: Any) -> str:
    """All text in a thought of any form (a string, an object, a list of either); encrypted ones have none."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(text for part in value if (text := _thought(part)))
    if isinstance(value, dict):
        return next((text for key in _THOUGHT_TEXT_KEYS if (text := _thought(value.get(key)))), "")
    return ""


def _shown(value: Any) -> str:
    return excerpt(json.dumps(value).encode())


def _tokens(usage: Any) -> tuple[int | None, int | None]:
    if not isinstance(usage, dict):
        return None, None
    prompt, completion = (usage.get(f"{name}_tokens") for name in ("prompt", "completion"))
    prompt = prompt if type(prompt) is int and 0 <= prompt < _MOST_TOKENS else None
    completion = completion if type(completion) is int and 0 <= completion < _MOST_TOKENS else None
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
