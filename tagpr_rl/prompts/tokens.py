"""Prompts and responses as tokens: a model's chat tokenizer, and white-space words if no tokenizer is at hand.

A response is one text everywhere: `<think>` tagged steps `</think>` answer, also where the chat template writes the
opening `<think>` itself. `continuation` says what is learned of it after a prompt, `ResponseText` what generated ids
are. Nothing else renders or decodes a response.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tagpr_rl.model.template import KEPT, TemplateFacts, look, merged_system, rendered, require, turn_end
from tagpr_rl.model.tokenizer import decoded, dropped_ids, encoded, load_tokenizer, schema_tags
from tagpr_rl.prompts.official import Tokens
from tagpr_rl.tags.schema import THINK, TagSchema, default_schema

Messages = Sequence[Mapping[str, str]]
THINKING: Mapping[str, bool] = {"direct": False, "thinking": True}
"""Style of a prompt -> whether the chat template is told to think; for other styles it does what it does by default."""
_OPENED = re.compile(rf"<{THINK}>\s*+\Z")
_TAIL = 32
"""Tokens, or characters, at a prompt's end that show whether it opens the thought."""


class PromptTokens(Tokens, Protocol):
    """What prompts need of a tokenizer."""

    def count(self, messages: Messages) -> int:
        """Tokens of the chat messages, after the chat template."""


class WordTokens:
    """White-space words as tokens. Each of `phrases` (prompt.prompt_phrases) counts as one, as in the tiny model."""

    def __init__(self, phrases: Sequence[str] = ()) -> None:
        self._phrases = re.compile("|".join(map(re.escape, phrases))) if phrases else None

    def count(self, messages: Messages) -> int:
        """Words of the messages' contents."""
        texts = [message["content"] for message in messages]
        return sum(len((self._phrases.sub(" _ ", text) if self._phrases else text).split()) for text in texts)

    def length(self, text: str) -> int:
        """Words of `text`."""
        return len(text.split())

    def cut(self, text: str, limit: int) -> tuple[int, str]:
        """(words kept, their text) of the first `limit` words."""
        if limit < 0:
            raise ValueError(f"limit {limit} is below 0")
        words = text.split()[:limit]
        return len(words), " ".join(words)


def opening(prompt: str) -> str:
    """The `<think>` and white space in which a rendered prompt ends; "" if it does not open the thought."""
    match = _OPENED.search(prompt[-_TAIL:])
    return match[0] if match else ""


def continuation(prompt: str, response: str) -> str:
    """What stands after the rendered prompt if the model answers `response`; `opening(prompt)` + it is the response.

    After a prompt that opens the thought, an answer without a thought closes it first.
    """
    opened = opening(prompt)
    if not opened:
        return response
    begun = response.lstrip()
    if not begun.startswith(f"<{THINK}>"):
        return f"\n</{THINK}>\n\n{response}"
    rest = begun.removeprefix(f"<{THINK}>")
    return rest if opened.endswith(">") else rest.lstrip()


class ResponseText:
    """Generated ids -> the response's text, without special tokens but with its tags, whatever kind of token they are.

    The thought that the prompt opened is part of the response.
    """

    def __init__(self, tokenizer: Any, schema: TagSchema | None) -> None:
        """`tokenizer` is a Hugging Face tokenizer, `schema` that of the responses (None: no tags but the thought's)."""
        self._tokenizer = tokenizer
        tags = schema_tags(schema)
        self.dropped = dropped_ids(tokenizer, tags) | {end for end in [turn_end(tokenizer)] if end is not None}
        """Ids that are no part of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids alone."""
        return decoded(self._tokenizer, ids, self.dropped)

    def opening(self, prompt: Sequence[int]) -> str:
        """`opening` of a prompt given as ids."""
        return opening(decoded(self._tokenizer, prompt[-_TAIL:], frozenset()))

    def __call__(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """The response to `prompt`."""
        return self.opening(prompt) + self.decode(ids)


class ChatTokenizer:
    """A Hugging Face tokenizer with its chat template: one for SFT rows, rollouts and evaluation. Loads no torch."""

    def __init__(self, folder: Path, style: str = "reasoning", schema: TagSchema | None = None) -> None:
        """`style` is that of the prompts (see THINKING), `schema` that of the responses; None = the built-in one."""
        self.thinking = THINKING.get(style)
        self.tokenizer = load_tokenizer(folder)
        self._schema = schema or default_schema()

    @cached_property
    def facts(self) -> TemplateFacts:
        """What template and tokenizer do; the model stage refuses their mistakes. TagprError without a template."""
        facts, mistakes = look(self.tokenizer, schema_tags(self._schema))
        return require(self.tokenizer.name_or_path, facts, mistakes if facts is None else ())

    @cached_property
    def text(self) -> ResponseText:
        """Makes responses of generated ids."""
        return ResponseText(self.tokenizer, self._schema)

    def render(self, messages: Messages) -> str:
        """The chat template's text, up to where the assistant begins.

        A system message goes before the user's text if the template has no such role. Without thinking, a thought that
        the template opens although its switch is off, or for want of a switch, is closed at once.
        """
        if messages[0]["role"] == "system" and self.facts.system != KEPT:
            messages = merged_system(messages)
        switch = self.facts.switch if self.thinking is not None else None
        settings: dict[str, Any] = {switch: self.thinking} if switch else {}
        text = rendered(self.tokenizer, messages, **settings)
        return f"{text.rstrip()}\n\n</{THINK}>\n\n" if self.thinking is False and opening(text) else text

    def count(self, messages: Messages) -> int:
        """Tokens of the prompt, after the chat template."""
        return len(self.encode(self.render(messages)))

    def learned(self, prompt: str, response: str) -> str:
        """What the model learns to write after the rendered prompt, for the whole `response`."""
        return continuation(prompt, response)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, nothing added."""
        return encoded(self.tokenizer, text)

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once."""
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def length(self, text: str) -> int:
        """Tokens of `text` with the special tokens the tokenizer adds (`official.Tokens`)."""
        return len(self.tokenizer(text)["input_ids"])

    def cut(self, text: str, limit: int) -> tuple[int, str]:
        """(tokens kept, their text) of the first `limit` tokens. ValueError below the special tokens."""
        if limit < self.tokenizer.num_special_tokens_to_add():
            raise ValueError(f"limit {limit} is below the special tokens")
        if limit == 0:  # Hugging Face takes 0 for no limit
            return 0, ""
        ids = self.tokenizer(text, max_length=limit, truncation=True)["input_ids"]
        return len(ids), str(self.tokenizer.decode(ids, skip_special_tokens=True))

    @property
    def end(self) -> int:
        """Id of the token that ends an assistant turn."""
        return self.facts.end_id
