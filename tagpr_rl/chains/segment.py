"""Teacher text -> thought and answer; thought -> steps. Deterministic, and no character is lost (ours)."""

from __future__ import annotations

import re

MIN_STEPS, MAX_STEPS = 3, 15

_ANSWER = re.compile(r"^[ \t>*#]*(?:final[ \t]+)?answer[ \t*]*:[ \t*]*", re.IGNORECASE | re.MULTILINE)
_LINE = re.compile(r"[^\n]*\n|[^\n]+\Z")
_SENTENCE = re.compile(r".*?[.!?;](?:[\"')\]]*)(?=\s)\s+|.+\Z", re.DOTALL)


def split_answer(text: str) -> tuple[str, str] | None:
    """(thought, answer) of a teacher's text, both not blank; None when it has no such form.

    The answer is what follows the last `Answer:` that begins a line (or, without one, what follows a native
    `</think>`). A native `<think>` around the thought is removed. Emphasis marks around the answer are dropped.
    """
    head, closed, tail = text.rpartition("</think>")
    body = tail if closed else text
    marks = list(_ANSWER.finditer(body))
    if marks:
        before, answer = body[: marks[-1].start()], body[marks[-1].end() :]
    elif closed:
        before, answer = "", body
    else:
        return None
    thought = (head if closed else before).replace("<think>", "").strip()
    answer = answer.strip().strip("*").strip()
    return (thought, answer) if thought and answer else None


def _attach_blank(pieces: list[str]) -> list[str]:
    """Join pieces of white space to the piece before (or after, at the beginning)."""
    joined: list[str] = []
    for piece in pieces:
        if joined and (not piece.strip() or not joined[-1].strip()):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def segment(thought: str, least: int = MIN_STEPS, most: int = MAX_STEPS) -> list[str]:
    """Cut a thought into steps: lines, or sentences when there are fewer than `least` lines.

    More than `most` steps are joined to neighbours, the shortest pair first. The concatenation of the result is
    `thought`, character by character. A thought of too few sentences gives fewer than `least` steps; the caller
    rejects it. A blank thought gives [].
    """
    if not thought.strip():
        return []
    pieces = _attach_blank(_LINE.findall(thought))
    if len(pieces) < least:
        pieces = _attach_blank(_SENTENCE.findall(thought))
    while len(pieces) > most:
        at = min(range(len(pieces) - 1), key=lambda i: len(pieces[i]) + len(pieces[i + 1]))
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    assert "".join(pieces) == thought
    return pieces
