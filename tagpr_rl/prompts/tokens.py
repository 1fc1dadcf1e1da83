"""A chat tokenizer: messages to text to token ids, the same for SFT rows, rollouts and evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

Messages = Sequence[Mapping[str, str]]


class ChatTokenizer:
    """A Hugging Face tokenizer, as far as the stages use it. Loads no torch."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        made = folder / "tiny.json"
        self.word_level = made.is_file() and json.loads(made.read_text(encoding="utf-8"))["kind"] == "word"
        """Line breaks mean nothing to this tokenizer, and would only cost tokens."""

    def render(self, messages: Messages) -> str:
        """The chat template's text, up to where the assistant begins."""
        chat = [dict(message) for message in messages]
        return str(self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))

    def count(self, messages: Messages) -> int:
        """Tokens of the prompt, after the chat template."""
        return len(self.encode(self.render(messages)))

    def response(self, text: str) -> str:
        """A response as the model is to write it."""
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
        """Tokens of `text` with the special tokens the tokenizer adds (`data.official.Tokens`)."""
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
