"""Counts words where no tokenizer is at hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from tagpr_rl.data.prompt import prompt_phrases
from tagpr_rl.tags.schema import TagSchema


def word_counter(schema: TagSchema | None) -> Callable[[Sequence[Mapping[str, str]]], int]:
    """A count of white-space words in chat messages; with a schema, a constant phrase counts as one word."""
    phrases = prompt_phrases(schema) if schema else ()
    pattern = re.compile("|".join(map(re.escape, phrases))) if phrases else None

    def count(messages: Sequence[Mapping[str, str]]) -> int:
        texts = [message["content"] for message in messages]
        return sum(len((pattern.sub(" _ ", text) if pattern else text).split()) for text in texts)

    return count
