"""Cuts a teacher's text into thought and answer, and a thought into steps, without losing a character."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from tagpr_rl.chains.client.leftovers import bare, holds_control, own_turn, thought_and_rest, turn_end, visible

MIN_STEPS, MAX_STEPS = 3, 15

_ANSWER = re.compile(r"^[ \t>*#]*(?:final[ \t]+)?answer[ \t*]*:[ \t*]*", re.IGNORECASE | re.MULTILINE)
_NEXT_TURN = re.compile(
    r"^[ \t]*(?:\#{2,}[ \t]*)?(?:(?:user|human|system|assistant|instruction)[ \t]*:|(?:user|human|assistant)[ \t]*$)",
    re.IGNORECASE | re.MULTILINE,
)
"""A line after the answer at which a model goes on with another's turn."""
_LAST_FENCE = re.compile(r"(?<=\S)\s*\n[ \t]*(?:`{3,}|~{3,})\s*\Z")
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

    The answer follows the last `Answer:` that begins a line; without one it follows a native `</think>`. The thought
    is the text before `Answer:`. If there is a native `<think>` block and the text after it has fewer than MIN_STEPS
    lines before `Answer:`, the block is the thought. Emphasis marks around the answer are dropped, and what a server
    or a template left around the text (leftovers.py); one inside it makes the text None. A thought that never ends has
    no answer.
    """
    parts = thought_and_rest(text)
    if parts is None:  # the thought was cut: an "Answer:" in it is no answer
        return None
    native, body = parts
    first = _ANSWER.search(body)
    body = body[: turn_end(body, first.end() if first else 0)] if first or native else body
    marks = list(_ANSWER.finditer(body))
    if marks:
        before, answer = body[: marks[-1].start()], body[marks[-1].end() :]
    elif native:
        before, answer = "", body
    else:
        return None
    if marks and _NEXT_TURN.search(body, marks[0].end(), marks[-1].start()):
        return None  # the answer to another question may stand last
    answer = _NEXT_TURN.split(answer, maxsplit=1)[0]
    few = sum(bool(line.strip()) for line in before.split("\n")) < MIN_STEPS
    thought = native if native and few else visible(before)
    answer = visible(own_turn(own_turn(_LAST_FENCE.sub("", bare(answer))).strip("*")))
    if not thought or not answer or holds_control(thought + answer):
        return None
    return thought, answer


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
