"""A JSON list read element by element: a file larger than memory, with the place of every fault.

`json.loads` needs the whole text and all its values at once. Here the standard library's scanner decodes one element
at a time from a sliding buffer of about a mebibyte (more while one element is longer).

ijson 3.6.0 is no replacement: it is as fast (92 MiB in 0.27 s against 0.26 s), but a NaN or an integer beyond 64 bits
makes the rest of the file unreadable to it, and half a surrogate pair becomes "?". Here such a value costs its own
record at most.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tagpr_rl.types import TagprError

CHUNK = 1 << 20
"""Bytes read at a time."""
MAX_ELEMENT = 64 << 20
"""An element of more characters is taken for broken JSON (a quotation mark that never closes)."""

_SPACE = re.compile(r"[ \t\n\r]*")
# A scanner that meets the buffer's end complains no earlier than this before it: the longest token is `-Infinity`.
_MARGIN = 16


def _integer(digits: str) -> float:
    # Python refuses to read thousands of digits; such a "number" is no id and no score.
    return int(digits) if len(digits) <= 300 else math.inf


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(counts.most_common(1)[0][0])
    return value


DECODER = json.JSONDecoder(parse_int=_integer)
UNIQUE = json.JSONDecoder(parse_int=_integer, object_pairs_hook=_unique)
"""Of whole files, whose keys may be question ids: a key that stands twice is refused (ValueError)."""


def stream_list(path: Path) -> Iterator[Any]:
    """The elements of the JSON list in `path`, one after the other.

    Raises TagprError, with the file, the element and the place, as soon as the text stops being a JSON list. Every
    element before that place has been yielded; what follows it cannot be read.
    """
    try:
        with Path(path).open("rb") as handle:
            yield from _Reader(path, handle).elements()
    except FileNotFoundError:
        raise TagprError(f"{path}: no such file; download LaMP into that folder, or correct the path") from None
    except OSError as error:
        raise TagprError(f"{path}: cannot be read: {error.strerror}") from None


def decode(path: Path, text: str) -> Any:
    """The JSON value of a whole file's text; TagprError with the place if it is broken."""
    try:
        value, end = UNIQUE.raw_decode(text, _end_of_space(text, 0))
    except json.JSONDecodeError as error:
        raise TagprError(
            f"{path}: broken JSON at line {error.lineno} column {error.colno} (character {error.pos} of "
            f"{len(text)}): {error.msg}; the download may be cut short, download it again"
        ) from None
    except ValueError as error:
        raise TagprError(f"{path}: the key {str(error)!r} stands twice in one object; keep the right one") from None
    except RecursionError:
        raise TagprError(f"{path}: JSON nested too deeply to be LaMP's; download it again") from None
    if (end := _end_of_space(text, end)) != len(text):
        raise TagprError(
            f"{path}: broken JSON: text after its end, at character {end} of {len(text)}; download it again"
        )
    return value


def read_json(path: Path) -> Any:
    """The JSON value of a whole file, or a TagprError that says what the file is instead."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TagprError(f"{path}: no such file; download LaMP into that folder, or correct the path") from None
    except UnicodeDecodeError as error:
        raise TagprError(f"{path}: not UTF-8 text (byte {error.start}); unpack or download it again") from None
    except OSError as error:
        raise TagprError(f"{path}: cannot be read: {error.strerror}") from None
    if not text.strip():
        raise TagprError(f"{path}: empty file; download it again")
    if text.lstrip()[:1] == "<":
        raise page_instead(path)
    return decode(path, text)


def page_instead(path: Path) -> TagprError:
    """The error for a file that holds a web page."""
    return TagprError(
        f"{path}: holds HTML, not JSON (a wrong download address answers with a web page); "
        "check the address and download it again"
    )


class _Reader:
    """One pass over one file. `text[at:]` is not yet consumed; `base` counts the characters before `text`."""

    def __init__(self, path: Path, handle: IO[bytes]) -> None:
        self.path, self.handle = path, handle
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text, self.at, self.base, self.n_bytes, self.ended, self.count = "", 0, 0, 0, False, 0

    def elements(self) -> Iterator[Any]:
        first = self._next()
        if first == "\ufeff":
            self.at += 1
            first = self._next()
        if first == "":
            raise TagprError(f"{self.path}: empty file; download it again")
        if first == "<":
            raise page_instead(self.path)
        if first != "[":
            self._not_a_list(first)
        self.at += 1
        if self._next() == "]":
            self.at += 1
        else:
            yield from self._rest()
        if self._next() != "":
            raise self._broken("text after the list's end", self.at)

    def _rest(self) -> Iterator[Any]:
        while True:
            yield self._element()
            self.count += 1
            mark = self._next()
            if mark not in (",", "]"):
                raise self._broken("expected ',' or ']' after the record" if mark else "the file ends here", self.at)
            self.at += 1
            if mark == "]":
                return
            self._next()

    def _element(self) -> Any:
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self.text) - _MARGIN or error.msg.startswith("Unterminated string")
                if self.ended or not cut or len(self.text) - self.at > MAX_ELEMENT:
                    raise self._broken(error.msg, error.pos) from None
            except RecursionError:
                raise self._broken("nested too deeply", self.at) from None
            else:
                number = isinstance(value, int | float)  # at the buffer's end a number may be cut
                if self.ended or not number or end < len(self.text) - _MARGIN:
                    self.at = end
                    return value
            self._fill()

    def _next(self) -> str:
        """The next character that is no white space, not consumed; "" at the file's end."""
        while True:
            self.at = _end_of_space(self.text, self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self._fill()

    def _fill(self) -> None:
        rest = self.text[self.at :]
        # A long element doubles the buffer, so that it is scanned a few times and not once per chunk.
        data = self.handle.read(max(CHUNK, len(rest)))
        pending = len(self.decoder.getstate()[0])
        try:
            more = self.decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            byte = self.n_bytes - pending + error.start
            raise TagprError(f"{self.path}: not UTF-8 text (byte {byte}); unpack or download it again") from None
        self.n_bytes += len(data)
        self.base, self.at, self.text, self.ended = self.base + self.at, 0, rest + more, not data

    def _broken(self, why: str, at: int) -> TagprError:
        return TagprError(
            f"{self.path}: record {self.count} (begins at character {self.base + self.at}): broken JSON at character "
            f"{self.base + at}: {why}; this record and what follows cannot be read. The download may be cut short, "
            "download it again"
        )

    def _not_a_list(self, first: str) -> None:
        if first == "{":
            hint = "; this looks like an outputs file" if '"golds"' in self.text else ""
            raise TagprError(f"{self.path}: the top level is an object, not a list of questions{hint}")
        self._element()  # says what is broken
        raise TagprError(f"{self.path}: the top level is not a list of questions")


def _end_of_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # the pattern matches the empty text
    return match.end()
