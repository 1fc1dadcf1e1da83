"""Cuts a response into pieces for display: coloured steps if it parses, otherwise a marked position."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

from rich.text import Text

from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import ParseStatus

TAG_SHAPES = "●■▲◆★✚▼◐⬟✖◇○△□☆⬡"
"""One for each tag in the schema's order, beside its colour and its name."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One run of text with its role."""

    kind: str
    """"step", "answer", "raw" (unparsed text) or "mark" (where the verdict fell; text is the status)."""
    text: str
    tag: str = ""
    """The step's tag; "" for the other kinds."""


@dataclass(frozen=True, slots=True)
class TraceView:
    """A response as the report shows it."""

    status: str
    reason: str
    pieces: tuple[Piece, ...]


def trace_view(response: str, schema: TagSchema, *, prefilled: bool = False) -> TraceView:
    """Cut `response` by the one parser's verdict. Malformed text has no colours."""
    parsed = parse(response, schema, prefilled=prefilled)
    if parsed.status is ParseStatus.OK and parsed.trace is not None:
        steps = tuple(Piece("step", step.text, step.tag) for step in parsed.trace.steps)
        return TraceView(str(parsed.status), "", (*steps, Piece("answer", parsed.trace.answer)))
    offset = min(max(parsed.offset, 0), len(response))
    parts = (Piece("raw", response[:offset]), Piece("mark", str(parsed.status)), Piece("raw", response[offset:]))
    return TraceView(str(parsed.status), parsed.reason, tuple(p for p in parts if p.text))


def tag_hues(schema: TagSchema) -> dict[str, int]:
    """A hue in degrees for each tag: evenly spaced, neighbours in the schema far apart."""
    count = len(schema.names)
    stride = next((s for s in (4, 5, 7, 3, 2) if count % s and s < count), 1)
    return {name: round(360 * ((index * stride) % count) / count) for index, name in enumerate(schema.names)}


def coloured_response(response: str, schema: TagSchema, *, prefilled: bool = False, separator: str = " ") -> Text:
    """A response for the terminal: steps in their tag's colour, or the place of the verdict marked.

    `separator` stands between steps. The text is never read as the console's markup.
    """
    styles = {tag: f"bold {_terminal_colour(hue)}" for tag, hue in tag_hues(schema).items()}
    out = Text()
    for piece in trace_view(response, schema, prefilled=prefilled).pieces:
        if piece.kind == "step":
            out.append(f"{piece.tag} ", styles[piece.tag]).append(f"{piece.text}{separator}")
        elif piece.kind == "answer":
            out.append("answer ", "bold").append(piece.text, "bold underline")
        elif piece.kind == "mark":
            out.append(f" ▲{piece.text} ", "bold white on red")
        else:
            out.append(piece.text, "dim")
    return out


def _terminal_colour(hue: int) -> str:
    """A rich colour of this hue, readable on dark and on light terminals."""
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue / 360, 0.5, 0.6))
    return f"rgb({red},{green},{blue})"
