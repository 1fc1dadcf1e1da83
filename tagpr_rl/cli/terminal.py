"""What a terminal gets to see of data: no text of a file, a model or a server moves its cursor or renames its window.

rich draws colours and progress with escape sequences of its own and passes on those that stand in a text. Only its
`Console._render_buffer` (rich 14, console.py:2132) tells the two apart, so that method is replaced.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_KEPT = "\n\t"
_PICTURES = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "\u2421"}
"""Control character -> its picture in Unicode: U+241B for an escape."""
_TABLE = {code: picture for code, picture in _PICTURES.items() if chr(code) not in _KEPT} | dict.fromkeys(
    range(0x80, 0xA0), "\ufffd"
)


def visible(text: str) -> str:
    """`text` with a picture for every control character but line break and tab; C1 codes become U+FFFD."""
    return text.translate(_TABLE)


def guard_rich() -> None:
    """Make every rich console of this process show control characters of texts as pictures."""
    from rich.console import Console

    draw = Console._render_buffer
    if getattr(draw, "tagpr_visible", False):
        return

    def render_buffer(self: Console, buffer: Iterable[Any]) -> str:
        return draw(self, [part if part.control else part._replace(text=visible(part.text)) for part in buffer])

    render_buffer.tagpr_visible = True  # type: ignore[attr-defined]
    Console._render_buffer = render_buffer  # type: ignore[method-assign]
