"""Counts words where no tokenizer is at hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from tagpr_rl.prompts.prompt import prompt_phrases
from tagpr_rl.tags.schema import TagSchema


class WordTokens:
    """White-space words as tokens, for `data.official` where no tokenizer is at hand."""

    def length(self, text: str) -> int:
        """Words of `text`."""
        return len(text.split())

    def cut(self, text: str, limit: int) -> tuple[int, str]:
        """(words kept, their text) of the first `limit` words."""
        if limit < 0:
            raise ValueError(f"limit {limit} is below 0")
        words = text.split()[:limit]
        return len(words), " ".join(words)


def word_counter(schema: TagSchema | None) -> Callable[[Sequence[Mapping[str, str]]], int]:
    """A count of white-space words in chat messages; with a schema, a constant phrase counts as one word."""
    phrases = prompt_phrases(schema) if schema else ()
    pattern = re.compile("|".join(map(re.escape, phrases))) if phrases else None

    def count(messages: Sequence[Mapping[str, str]]) -> int:
        texts = [message["content"] for message in messages]
        return sum(len((pattern.sub(" _ ", text) if pattern else text).split()) for text in texts)

    return count
