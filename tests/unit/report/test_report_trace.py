"""Responses cut into pieces by the one parser, for the page and for the terminal."""

from __future__ import annotations

import itertools

from tagpr_rl.report.page.trace import Piece, coloured_response, tag_hues, trace_view
from tagpr_rl.tags.schema import default_schema

SCHEMA = default_schema()
GOOD = "<think><conclude>so [red]4[/red]</conclude></think> 4"


def test_a_good_response_is_its_steps_and_answer() -> None:
    view = trace_view(GOOD, SCHEMA)
    assert view.pieces == (Piece("step", "so [red]4[/red]", "conclude"), Piece("answer", "4"))
    assert (view.status, view.reason) == ("OK", "")


def test_a_bad_response_keeps_every_character_and_marks_the_place() -> None:
    text = "<think><conclude>so</conclude> stray </think> 4"
    view = trace_view(text, SCHEMA)
    assert [piece.kind for piece in view.pieces] == ["raw", "mark", "raw"]
    assert view.pieces[1].text == "TEXT_OUTSIDE" and view.pieces[2].text == "stray </think> 4"
    assert "".join(piece.text for piece in view.pieces if piece.kind == "raw") == text
    assert [piece.kind for piece in trace_view("", SCHEMA).pieces] == ["mark"]


def test_a_prefilled_thought_is_the_parser_s_setting() -> None:
    assert trace_view(GOOD.removeprefix("<think>"), SCHEMA, prefilled=True).status == "OK"
    assert trace_view(GOOD.removeprefix("<think>"), SCHEMA).status != "OK"


def test_hues_differ() -> None:
    hues = tag_hues(SCHEMA)
    assert list(hues) == list(SCHEMA.names) and len(set(hues.values())) == len(SCHEMA.names)
    ring = sorted(hues.values())
    assert min(b - a for a, b in itertools.pairwise(ring)) >= 39  # nine tags, 40 degrees apart


def test_the_terminal_shows_text_as_it_is() -> None:
    assert coloured_response(GOOD, SCHEMA).plain == "conclude so [red]4[/red] answer 4"
    assert coloured_response(GOOD, SCHEMA, separator="\n").plain == "conclude so [red]4[/red]\nanswer 4"
    assert coloured_response("no", SCHEMA).plain == " ▲NO_THOUGHT no"
