"""Progress of a call to a model without a terminal: a line a minute, with the time left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tagpr_rl.chains.client import usage
from tagpr_rl.chains.client.chat import Reply, ReplyStatus


def test_a_line_a_minute_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(usage.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    with usage.ReplyProgress("m", 10, Console(file=out, width=40)) as progress:
        for _ in range(5):
            clock[0] += 24.0
            progress.add(Reply("x", ReplyStatus.OK, 3, 2), 0.0)
    # 5 replies in 120 s; the third comes after 72 s, and 7 are left at 24 s each: 168 s
    assert out.getvalue() == "m: 3 of 10, 3 min left, 9 in, 6 out, 0.0/s\n"
