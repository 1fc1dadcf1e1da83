"""Characters to tokens: the character at which each token begins, and the tokens of a character span."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

Decode = Callable[[Sequence[int]], str]
"""Token ids -> text, special tokens skipped."""
Encode = Callable[[str], tuple[Sequence[int], Sequence[int]]]
"""Text -> token ids and each token's first character, without special tokens."""

_BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character, or not yet one


def starts_by_encoding(ids: Sequence[int], text: str, encode: Encode, special: Collection[int]) -> list[int] | None:
    """`token_starts` from one encoding of the decoded text; None if its tokens are not the response's.

    Much cheaper than `token_starts`, and enough for nearly all responses: a policy seldom writes a text in other
    tokens than its tokenizer would.
    """
    again, firsts = encode(text)
    if [token for token in ids if token not in special] != list(again):
        return None
    starts = []
    at = 0
    for token in ids:
        if token in special:
            starts.append(firsts[at] if at < len(firsts) else len(text))
        else:
            starts.append(firsts[at])
            at += 1
    return starts


def token_starts(ids: Sequence[int], decode: Decode) -> list[int]:
    """Each token's first character in `decode(ids)`, white space before it not counted: `[T]`, never decreasing.

    A token that adds no character (a special token, the first bytes of a character that the next token completes)
    starts where the next one does. Tokens are decoded in windows that begin before the last two that gave text, since
    a decoder may write a token differently at the beginning of a text (a leading space). Linear in the tokens. If the
    windows do not add up to the text (a decoder that tidies up across tokens), every prefix is decoded instead.
    """
    text = decode(ids)
    starts: list[int] = []
    at = base = window = read = 0
    for index in range(len(ids)):
        starts.append(at)
        known, now = decode(ids[window:read]), decode(ids[window : index + 1])
        at = max(at, base + len(now.rstrip(_BROKEN)) - len(known))
        if len(now) > len(known) and not now.endswith(_BROKEN):
            base, window, read = at, read, index + 1
    if at == len(text) or (text.endswith(_BROKEN) and at <= len(text)):
        return _past_blanks(starts, text)
    return _past_blanks(_by_prefixes(ids, decode, len(text)), text)


def _past_blanks(starts: Sequence[int], text: str) -> list[int]:
    """A token begins after its leading white space, as in a tokenizer's offsets, unless it is white space alone."""
    shifted = []
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        piece = text[start:end]
        shifted.append(start + len(piece) - len(piece.lstrip()) if not piece.isspace() else start)
    return shifted


def _by_prefixes(ids: Sequence[int], decode: Decode, length: int) -> list[int]:
    starts: list[int] = []
    at = 0
    for index in range(len(ids)):
        starts.append(at)
        at = min(length, max(at, len(decode(ids[: index + 1]).rstrip(_BROKEN))))
    return starts


def tokens_of(starts: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Tokens [first, end) of each character span: those whose first character lies in it.

    A token that reaches from one span into the next belongs to the span in which it begins, so no token is in two.

    Args:
        starts: `token_starts`, `[T]`.
        spans: character spans in order, not overlapping.
    """
    ranges = []
    index = 0
    for start, end in spans:
        while index < len(starts) and starts[index] < start:
            index += 1
        first = index
        while index < len(starts) and starts[index] < end:
            index += 1
        ranges.append((first, index))
    return ranges
