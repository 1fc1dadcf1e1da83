"""Words of plain text without a regular expression: what the rewards spend most of their time on."""

from __future__ import annotations

from collections.abc import Sequence

_WORD = bytes(code for code in range(128) if chr(code).isalnum())
_SPACE = bytes(code for code in range(128) if chr(code).isspace())
_WORD_OR_SPACE = _WORD + _SPACE
_MASK = bytes(0x77 if code in _WORD else 0x20 for code in range(256))

RUN = 16
_LONG_RUN = b"w" * (RUN + 1)


Plain = tuple[list[list[str]], set[str]]
"""(tokens of each text, the marks among them)."""


def plain_tokens(texts: Sequence[str]) -> Plain | None:
    """Lower-case words and single other marks of each text, in order; None if a text is not plain.

    Plain is ASCII without underscores, line breaks and runs of more than RUN letters and digits. There the tokens
    are those of the pattern `\\w{1,16}|[^\\w\\s]`, and without the marks those of `[^\\W_]+`.
    """
    whole = "\n".join(texts)
    if not whole.isascii() or whole.count("\n") >= len(texts):
        return None
    raw = whole.encode("ascii")
    if _LONG_RUN in raw.translate(_MASK):
        return None
    marks = set(raw.translate(None, _WORD_OR_SPACE).decode("ascii"))
    if "_" in marks:
        return None
    whole = whole.lower()
    for mark in marks:
        whole = whole.replace(mark, f" {mark} ")
    return [line.split() for line in whole.split("\n")], marks
