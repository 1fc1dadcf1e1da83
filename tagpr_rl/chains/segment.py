"""Cuts a teacher's text into thought and answer, and a thought into steps, without losing a character."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from tagpr_rl.tags.thoughts import split_thought

MIN_STEPS, MAX_STEPS = 3, 15

_ANSWER = re.compile(r"^[ \t>*#]*(?:final[ \t]+)?answer[ \t*]*:[ \t*]*", re.IGNORECASE | re.MULTILINE)
_LINE = re.compile(r"[^\n]*\n|[^\n]+\Z")
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
_SENTENCE = re.compile(
    r"""
    .*?(?: [.!?;]["')\]]*(?=\s)\s+        # Latin: an end mark needs white space after it
         | [。！？]["'」』]*\s* )            # Chinese and Japanese: it needs none
    | .+\Z
    """,
    re.DOTALL | re.VERBOSE,
)
_BARE = re.compile(r"[\W_]*+(?:\d{1,3}[.)])?[\W_]*+")
"""A text that is no step by itself: white space, a bullet, a list number, a rule (`---`)."""
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|vs|cf|al|Mr|Mrs|Ms|Dr|No|Fig)\.\Z")
"""A full stop that does not end a sentence."""


def split_answer(text: str) -> tuple[str, str] | None:
    """(thought, answer) of a teacher's text, neither of them blank; None if the text has another form.

    The answer follows the last `Answer:` that begins a line; without one it follows a native `</think>`. A native
    thought that is still open at the end has no answer. The thought is the text before `Answer:`. If there is a
    native `<think>` block and the text after it has fewer than MIN_STEPS lines before `Answer:`, the block is the
    thought. Emphasis marks around the answer are dropped.
    """
    parts = split_thought(text)
    if parts is None:  # the thought was cut: an "Answer:" in it is no answer
        return None
    head, body = parts
    closed = len(body) < len(text)
    marks = list(_ANSWER.finditer(body))
    if marks:
        before, answer = body[: marks[-1].start()], body[marks[-1].end() :]
    elif closed:
        before, answer = "", body
    else:
        return None
    native = closed and sum(bool(line.strip()) for line in before.split("\n")) < MIN_STEPS
    thought = (head if native else before).replace("<think>", "").strip()
    answer = answer.strip().strip("*").strip()
    return (thought, answer) if thought and answer else None


def segment(thought: str, least: int = MIN_STEPS, most: int = MAX_STEPS) -> list[str]:
    """The steps of a thought: its lines, or its sentences if there are fewer than `least` lines.

    A fenced code block is one line. Blank lines and lone list marks belong to a neighbouring step. If there are more
    than `most` steps, neighbours are joined, the shortest pair first. The steps joined together are exactly `thought`.
    There may be fewer than `least` steps (the caller rejects such a thought), and none for a blank thought.
    """
    if not thought.strip():
        return []
    blocks = _fenced(_LINE.findall(thought))
    pieces = _joined([text for text, _ in blocks])
    if len(pieces) < least:
        pieces = _joined([part for text, code in blocks for part in ([text] if code else _sentences(text))])
    lengths = [len(a) + len(b) for a, b in itertools.pairwise(pieces)]
    while len(pieces) > most:
        at = lengths.index(min(lengths))
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        del lengths[at]
        for near in (at - 1, at):
            if 0 <= near < len(lengths):
                lengths[near] = len(pieces[near]) + len(pieces[near + 1])
    return pieces


def reassembles(steps: Sequence[str], thought: str) -> bool:
    """Whether the joined steps equal the thought in UTF-8; False if UTF-8 cannot encode it."""
    try:
        return "".join(steps).encode() == thought.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can carry and a file cannot
        return False


def _fenced(lines: Sequence[str]) -> list[tuple[str, bool]]:
    """(text, whether it is code): a closed fence and its lines are one text; a fence that never closes is a plain
    line."""
    blocks: list[tuple[str, bool]] = []
    open_marks: set[str] = set()  # marks that no later line closes; searching for them again would take quadratic time
    at = 0
    while at < len(lines):
        mark = _FENCE.match(lines[at])
        end = None
        if mark and mark[1] not in open_marks:
            closing = (i for i in range(at + 1, len(lines)) if lines[i].strip() == mark[1])
            end = next(closing, None)
            if end is None:
                open_marks.add(mark[1])
        if end is None:
            blocks.append((lines[at], False))
            at += 1
        else:
            blocks.append(("".join(lines[at : end + 1]), True))
            at = end + 1
    return blocks


def _sentences(text: str) -> list[str]:
    sentences: list[str] = []
    for piece in _SENTENCE.findall(text):
        if sentences and _ABBREVIATION.search(sentences[-1].rstrip()[-8:]):
            sentences[-1] += piece
        else:
            sentences.append(piece)
    return sentences


def _joined(pieces: Sequence[str]) -> list[str]:
    """Join blank pieces and lone marks to a neighbour, so that every piece is a step.

    A blank piece joins the piece before it, or the first step at the beginning. A lone mark joins the piece after
    it, or the last step at the end.
    """
    joined: list[str] = []
    waiting = ""
    for piece in pieces:
        if not piece.strip() and joined and not waiting:
            joined[-1] += piece
        elif _BARE.fullmatch(piece):
            waiting += piece
        else:
            joined.append(waiting + piece)
            waiting = ""
    if waiting and joined:
        joined[-1] += waiting
    elif waiting:
        joined.append(waiting)
    return joined
