"""What servers and chat templates leave around a model's text: end tokens, role headers, a second `</think>`.

None of it may become training text. The prompts hold no such markup (prompts/prompt.py `clean`), so a model has no
reason to quote it.
"""

from __future__ import annotations

import re
from typing import Final

from tagpr_rl.tags.thoughts import split_thought, without_markers

INVISIBLE: Final = "\ufeff\u200b\u200c\u200d\u200e\u200f\u2060\u00ad\u061c\x00"
"""Characters without width. Around a text they mean nothing; some of them join letters inside one."""

_NOWHERE: Final = re.compile("[\ufeff\u200b\u2060\x00]")  # those that mean nothing inside a text either
_END: Final = (  # a control token behind which the turn is over: `<|...|>` of most templates, then the others
    r"<[|\uff5c][^<>\s]{1,60}[|\uff5c]>|</s>|<eos>|<(?:start|end)_of_turn>|<\|turn>|<turn\|>|<end_of_utterance>"
    r"|<seed:eos>|<eop>|<eod>|<eot>|<eom>|<?<end>>?|<stop>|<\[end▁of▁[a-z]{1,20}\]>|\[/?INST\]|\[EOS\]|\[e~\["
    r"|\[DONE\]|\[end of text\]"
)
_AROUND: Final = (
    rf"{_END}|<s>|<bos>|<pad>|<unk>|<mask>|<unused\d+>|</?(?:answer|final_answer|response|assistant)>"
    r"|\[BOS\]|\[PAD\]|\[gMASK\]|<sop>|<seed:bos>|\]~!?b[\[\]]"
)
_LONGEST: Final = 64  # characters of the longest token or header at the end
_BLANK: Final = rf"[\s{INVISIBLE}]"
_ROLE_FIRST: Final = (
    r"(?:assistant|model|ai)[ \t]*(?=\n|<[|\uff5c]|\Z)|assistant[ \t]*:|\#{2,}[ \t]*(?:response|assistant)[ \t]*:?"
)
_ROLE_LAST: Final = r"\n[ \t#]*(?:assistant|user|human|system|model)[ \t]*:?"
_BEFORE: Final = re.compile(rf"\A(?:{_BLANK}|{_AROUND}|{_ROLE_FIRST})*", re.IGNORECASE)
_AFTER: Final = re.compile(rf"(?:{_BLANK}|{_AROUND}|{_ROLE_LAST})*\Z", re.IGNORECASE)
# "comedyassistant" and an empty line: a header of Llama 3 whose tokens were left out on decoding.
_OVER: Final = re.compile(rf"{_END}|(?<=\S)assistant(?=\n\n|\Z)", re.IGNORECASE)

# An end token that a stop string cut in two.
_HALF: Final = re.compile(r"<\|[a-z_]{0,30}\|?\Z|<(?:start|end)_[a-z_]{0,20}\Z|</[a-z_]{0,20}\Z", re.IGNORECASE)


def bare(text: str) -> str:
    """`text` without what stands around it. A control token inside it stays (`holds_control`)."""
    text = _NOWHERE.sub("", text)
    while True:
        size, text = len(text), _HALF.sub("", visible(text))
        text = text[_BEFORE.match(text).end() :]  # type: ignore[union-attr]  # it matches "", too
        # At the end only: a search through the whole text would try every white space of it.
        tail = _AFTER.search(text, max(0, len(text) - _LONGEST))
        text = text[: tail.start()] if tail else text
        if len(text) == size:
            return text


def holds_control(text: str) -> bool:
    """Whether a control token stands anywhere in `text`."""
    return re.search(_AROUND, text, re.IGNORECASE) is not None


def turn_end(text: str, start: int = 0) -> int:
    """Where an end token stands at or after `start`, and with it the model's own turn; len(text) without one."""
    over = _OVER.search(text, start)
    return over.start() if over else len(text)


def own_turn(text: str) -> str:
    """`bare` text up to its first end token: what follows is another's turn."""
    text = bare(text)
    while (end := turn_end(text)) < len(text):
        text = bare(text[:end])
    return text


def thought_and_rest(text: str) -> tuple[str, str] | None:
    """(thought, what follows it), both bare and without a thought's markers; None if the thought has not ended.

    A second `</think>`, after the answer, is a leftover.
    """
    parts = split_thought(text)
    if parts is None:
        return None
    head, rest = parts
    if len(rest) < len(text) and not visible(rest):
        again = split_thought(head)
        if again is not None and len(again[1]) < len(head) and visible(again[1]):
            head, rest = again
    return bare(without_markers(head)), bare(rest)


def without_thought(text: str) -> str:
    """The model's own turn after its thought; "" while the thought is open."""
    parts = thought_and_rest(text)
    return own_turn(parts[1]) if parts else ""


def visible(text: str) -> str:
    """`text` without white space and invisible characters around it."""
    return text.strip(" \t\r\n\f\v\u00a0" + INVISIBLE)
