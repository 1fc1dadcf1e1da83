"""Where a response's thought ends, also in the notations of other models: the one place that says what the answer is.

A thought may stand in `<think>`, `<thinking>`, `<thought>`, `<reasoning>`, `<reflection>`, `<scratchpad>`,
`<analysis>`, `<antThinking>` and the like (any case, also with attributes), `[THINK]` (Magistral), `◁think▷` (Kimi),
`<seed:think>`, `<|START_THINKING|>` (Command), `<|begin_of_thought|>` (Sky-T1), `<|thinking|>`, `<|channel>thought`
(Gemma), between `Thinking...` and `...done thinking.` (Ollama's command line), or in the analysis channel of the
Harmony format, with or without its special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tagpr_rl.tags.schema import THINK

_PAIRS = (
    (r"\[THINK\]", r"\[/THINK\]"),
    ("◁think▷", "◁/think▷"),
    (r"<\|(?:START|begin)_(?:of_)?(?:THINKING|thought)\|>", r"<\|END_(?:of_)?(?:THINKING|thought)\|>"),
    (r"<\|think(?:ing)?\|>", r"<(?:\|/|/\|)think(?:ing)?\|>"),
    (r"(?:<\|channel>|<unused94>)thought\n", r"<channel\|>|<unused95>"),
    (r"\A\s*+Thinking\.\.\.\n", r"^\.\.\.done thinking\.[ \t]*+$"),
)
"""(opening, closing) marker of a thought, beside `<word>` and `</word>`."""
_MARKERS = re.compile(
    r"<\s*+(?P<slash>/?+)\s*+(?P<word>think|thinking|thoughts?|reason|reasoning|reflection|scratchpad|analysis|cot"
    r"|antthinking|inner_thoughts?|internal_reasoning|(?:thinking|thought)_process|(?:seed:|mm:|longcat_)think)"
    r"(?:\s++[\w-]++=[^<>]*+)?\s*+>"
    + "".join(f"|(?P<o{i}>{opening})|(?P<c{i}>{closing})" for i, (opening, closing) in enumerate(_PAIRS)),
    re.IGNORECASE | re.MULTILINE,
)
_CHANNEL = re.compile(r"<\|channel\|>\s*+(\w++)[^<]*+(?:<\|constrain\|>[^<]*+)?<\|message\|>")
_HARMONY_END = re.compile(r"<\|(?:end|return|start|call)\|>")
_HARMONY_MARKS = re.compile(rf"<\|start\|>assistant|{_HARMONY_END.pattern}|{_CHANNEL.pattern}")
_BARE_ANALYSIS = re.compile(r"\s*(?:assistant)?analysis(?=[A-Z\"'(\[*0-9])")
"""The Harmony format without its special tokens: the channel's name and the text stand together."""
_BARE_FINAL = "assistantfinal"


def split_thought(text: str, *, prefilled: bool = False) -> tuple[str, str] | None:
    """(thought, text after it), unstripped; ("", text) without a thought; None if a thought is open at the end.

    Of several thoughts the last counts. `<think>` and `</think>` are the only markers that count if there is one.

    Args:
        text: a model's whole reply, or its continuation of a prompt.
        prefilled: the prompt has opened `<think>` already, so that the text begins inside the thought.
    """
    if (channels := _channels(text)) is not None:
        return channels if channels[1].strip() else None
    opened = [THINK] if prefilled else []
    marks = [(*_name(match), match) for match in _MARKERS.finditer(text)]
    if prefilled or any(name == THINK for name, *_ in marks):
        marks = [mark for mark in marks if mark[0] == THINK]  # the others are the thought's own text
    start = end = 0
    for name, closes, match in marks:
        if not closes:
            opened += [name] * (name not in opened)
            continue
        if name in opened:
            del opened[opened.index(name) :]  # what was opened inside it ends with it
        start, end = match.span()
    return None if opened else (text[:start], text[end:])


def without_markers(thought: str) -> str:
    """A thought of `split_thought` without the markers around and inside it."""
    thought = _BARE_ANALYSIS.sub("", thought, count=1) if _BARE_ANALYSIS.match(thought) else thought
    return _MARKERS.sub("", _HARMONY_MARKS.sub("", thought))


def _name(match: re.Match[str]) -> tuple[str, bool]:
    """(name of the notation, whether the marker closes a thought)."""
    if match["word"]:
        return match["word"].lower(), bool(match["slash"])
    group = str(match.lastgroup)
    return group[1:], group[0] == "c"


def begin_inside(texts: Sequence[str]) -> bool:
    """Whether a model's texts show that its template opened `<think>`: most close a thought that they did not open."""
    return 2 * sum(map(closes_unopened, texts)) > len(texts)


def closes_unopened(text: str) -> bool:
    """Whether `text` closes a `<think>` that it does not open."""
    return f"</{THINK}>" in text and f"<{THINK}>" not in text


def _channels(text: str) -> tuple[str, str] | None:
    """(text before, text of) the last final channel of a Harmony reply, with "" for none; None for another reply."""
    marks = list(_CHANNEL.finditer(text))
    if marks:
        final = [mark for mark in marks if mark[1].lower() == "final"]
        if not final:
            return text, ""
        return text[: final[-1].start()], _HARMONY_END.split(text[final[-1].end() :])[0]
    if _BARE_ANALYSIS.match(text):
        before, _, after = text.rpartition(_BARE_FINAL)
        return (before, after) if before else (text, "")
    return None
