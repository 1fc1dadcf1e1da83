"""How long a prompt is: a model's chat tokenizer, and white-space words if no tokenizer is at hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tagpr_rl.prompts.official import Tokens

Messages = Sequence[Mapping[str, str]]


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


_OPEN_THOUGHT = re.compile(r"<think>\s*\Z")
THINKING: Mapping[str, bool] = {"direct": False, "thinking": True}
"""Prompt style -> whether the chat template is told to think; others leave it as the template has it."""


def opens_thought(rendered: str) -> bool:
    """Whether a rendered prompt ends in an open `<think>`, so that the response begins inside the thought."""
    return _OPEN_THOUGHT.search(rendered) is not None


class ChatTokenizer:
    """A Hugging Face tokenizer with its chat template: one for SFT rows, rollouts and evaluation. Loads no torch.

    `style` is that of the prompts (see THINKING): a template with a switch, such as Qwen3's, is told to think or not.
    """

    def __init__(self, folder: Path, style: str = "reasoning") -> None:
        from transformers import AutoTokenizer

        self.thinking = THINKING.get(style)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        tiny = folder / "tiny.json"
        self.word_level = tiny.is_file() and json.loads(tiny.read_text(encoding="utf-8"))["kind"] == "word"
        """Whether this is the tiny word-level tokenizer, to which line breaks mean nothing."""

    def render(self, messages: Messages) -> str:
        """The chat template's text, up to where the assistant begins."""
        chat = [dict(message) for message in messages]
        # Qwen3 and others call the switch enable_thinking, DeepSeek and Granite thinking; a template ignores the rest.
        switch: dict[str, Any] = {}
        if self.thinking is not None:
            switch = {"enable_thinking": self.thinking, "thinking": self.thinking}
        text = str(self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False, **switch))
        if self.thinking is False and opens_thought(text):  # no switch: the thought is closed as Qwen3's template does
            text = f"{text.rstrip()}\n\n</think>\n\n"
        return text

    def count(self, messages: Messages) -> int:
        """Tokens of the prompt, after the chat template."""
        return len(self.encode(self.render(messages)))

    def response(self, text: str) -> str:
        """A response in the form that the model learns to write."""
        return " ".join(text.split()) if self.word_level else text

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, nothing added."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

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
        return int(self.tokenizer.eos_token_id)
