"""A response that arrives in pieces, split into its thought and its answer: what a server shows of it.

The pieces of thought and answer joined are the same however the response is cut, and for a response that `parse`
accepts they are the text between `<think>` and `</think>` and the trace's answer. A response that does not open with
`<think>` (or go on inside a thought that the prompt opened) is all answer. One whose thought is never closed has none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tagpr_rl.tags.schema import THINK

OPENING, CLOSING = f"<{THINK}>", f"</{THINK}>"


@dataclass
class ThoughtStream:
    """Takes the pieces of one response in order; gives back what is new of its thought and of its answer.

    White space around either is left out, so some of it waits until text follows. So does what may be a cut
    `<think>` or `</think>`; if the response ends there, it is lost, as all cut markup is.
    """

    prefilled: bool = False
    """The prompt has opened `<think>`; a response that opens one of its own all the same is read the same way."""
    _part: str = field(default="start", init=False)
    _waiting: str = field(default="", init=False)
    _empty: bool = field(default=True, init=False)
    """Whether the part has given no text yet."""

    def feed(self, piece: str) -> tuple[str, str]:
        """(new text of the thought, new text of the answer), either of them perhaps ""."""
        self._waiting += piece
        if self._part == "start" and not self._start():
            return "", ""
        thought = ""
        if self._part == "thought":
            body, closing, rest = self._waiting.partition(CLOSING)
            thought = self._take(body, ended=bool(closing))
            if not closing:
                return thought, ""
            self._part, self._waiting, self._empty = "answer", rest, True
        return thought, self._take(self._waiting)

    def _start(self) -> bool:
        """Whether enough has come to know what the response begins with."""
        text = self._waiting.lstrip()
        if text.startswith(OPENING):
            self._part, self._waiting = "thought", text[len(OPENING) :]
        elif OPENING.startswith(text):
            return False
        else:
            self._part = "thought" if self.prefilled else "answer"
        return True

    def _take(self, text: str, *, ended: bool = False) -> str:
        """What of `text`, the part's text that has not been given yet, can be given now; the rest waits."""
        if self._empty:
            text = text.lstrip()
        ready = text.rstrip()
        if self._part == "thought" and not ended:
            ready = ready[: len(ready) - _cut_length(ready)].rstrip()
        self._waiting = text[len(ready) :]
        self._empty = self._empty and not ready
        return ready


def split_response(text: str, *, prefilled: bool = False) -> tuple[str, str]:
    """(thought, answer) of a whole response, as a `ThoughtStream` gives them."""
    return ThoughtStream(prefilled).feed(text)


def _cut_length(text: str) -> int:
    """Characters at the end of `text` that are the beginning of `</think>`."""
    start = text.rfind("<", max(0, len(text) - len(CLOSING) + 1))
    return len(text) - start if start >= 0 and CLOSING.startswith(text[start:]) else 0
