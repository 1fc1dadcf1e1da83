"""vLLM's reasoning parser `tagpr`: the tagged thought as `reasoning`, the answer as `content`, streaming and not.

The interface is vLLM 0.27 reasoning/abs_reasoning_parsers.py. Our tags are ordinary words for most tokenizers, so the
parser reads text; vLLM's own parsers for `<think>` want one token for each tag.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

from vllm.entrypoints.openai.engine.protocol import DeltaMessage
from vllm.reasoning import ReasoningParser

from tagpr_rl.tags.streaming import CLOSING, OPENING, ThoughtStream, split_response

_TAIL_TOKENS = 64
"""Tokens at the end of a prompt that hold what the template may add: `<think>`, or an empty thought."""


class TagprParser(ReasoningParser):
    """One for each request: it holds the state of a stream."""

    def __init__(self, tokenizer: Any, *args: Any, **options: Any) -> None:
        super().__init__(tokenizer, *args, **options)
        self._stream = ThoughtStream()
        self._splits = False
        """Whether this object has been given a stream's text."""

    @property
    def reasoning_start_str(self) -> str:
        """`<think>`."""
        return OPENING

    @property
    def reasoning_end_str(self) -> str:
        """`</think>`."""
        return CLOSING

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether the tokens, a prompt's, end with a closed thought: the template has chosen an answer without one.

        Only their end counts: a prompt that explains the tags has `</think>` in it as well.
        """
        return self._tail(input_ids).endswith(CLOSING)

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        """Whether the response has closed its thought, for the engine's structured outputs.

        Never for a stream that this object splits: vLLM would pass on what follows as it is, and so with white space.
        """
        return not self._splits and CLOSING in self._text(input_ids)

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """The tokens after the one that completes the first `</think>`; none while the thought is open."""
        lengths = range(len(input_ids) + 1)
        closed = bisect_left(lengths, True, key=lambda length: CLOSING in self._text(input_ids[:length]))
        return input_ids[closed:]

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """Tokens of a response up to and with `</think>`; all of them while a thought is open; 0 without one."""
        ids = list(token_ids)
        text = self._text(ids)
        return len(ids) - len(self.extract_content_ids(ids)) if OPENING in text or CLOSING in text else 0

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """(thought, answer) of a whole response; None for what it has not.

        A response that closes a thought which it did not open goes on with one that the prompt opened.
        """
        head, closing, _ = model_output.partition(CLOSING)
        thought, answer = split_response(model_output, prefilled=bool(closing) and OPENING not in head)
        return thought or None, answer or None

    def adjust_initial_state_from_prompt(self, prompt_token_ids: Sequence[int]) -> None:
        """Called once before a stream: whether the prompt ends inside a thought."""
        self._stream = ThoughtStream(prefilled=self._tail(prompt_token_ids).endswith(OPENING))

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """What a piece of a stream adds; None if it adds nothing yet."""
        self._splits = True
        thought, answer = self._stream.feed(delta_text)
        return DeltaMessage(reasoning=thought or None, content=answer or None) if thought or answer else None

    def _tail(self, ids: Sequence[int]) -> str:
        return self._text(list(ids)[-_TAIL_TOKENS:]).rstrip()

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.model_tokenizer.decode(list(ids)))
