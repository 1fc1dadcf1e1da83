"""Words of plain text without a regular expression: what the rewards spend most of their time on."""

from __future__ import annotations

_WORD = bytes(code for code in range(128) if chr(code).isalnum())
_SPACE = bytes(code for code in range(128) if chr(code).isspace())
_WORD_OR_SPACE = _WORD + _SPACE
_MASK = bytes(0x77 if code in _WORD else 0x20 for code in range(256))

RUN = 16
_LONG_RUN = b"w" * (RUN + 1)


def plain_tokens(text: str) -> tuple[list[str], int] | None:
    """(lower-case words and single other marks of `text` in order, how many kinds of marks); None: not plain.

    Plain is ASCII without underscores and without a run of more than RUN letters and digits. There the tokens are
    those of the pattern `\\w{1,16}|[^\\w\\s]`, and without the marks those of `[^\\W_]+`.
    """
    if not text.isascii():
        return None
    raw = text.encode("ascii")
    if _LONG_RUN in raw.translate(_MASK):
        return None
    marks = set(raw.translate(None, _WORD_OR_SPACE).decode("ascii"))
    if "_" in marks:
        return None
    lowered = text.lower()
    for mark in marks:
        lowered = lowered.replace(mark, f" {mark} ")
    return lowered.split(), len(marks)
