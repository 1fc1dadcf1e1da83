"""Progress of a training stage without a terminal: one line in a while, with the time left."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tagpr_rl.run import metrics
from tagpr_rl.stages import common


def describe(row: metrics.Row) -> str:
    return f"reward {row['reward']:.2f}"


def test_a_line_says_step_time_left_and_figures() -> None:
    # six steps of 30 s are left at the end
    rows = [{"step": step, "time_s": 30.0 * step, "reward": step / 10} for step in (1, 2, 3)]
    assert common.progress_line("guided", [], 9, describe) == "guided: starting"
    assert common.progress_line("guided", rows[:1], 9, describe) == "guided: step 1 of 9, reward 0.10"
    assert (
        common.progress_line("guided", rows, 9, describe) == "guided: step 3 of 9, 3 min left, reward 0.30"
    )  # 6 x 30 s


def test_a_log_gets_a_line_in_a_while_and_a_terminal_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "LINE_EVERY_S", 0.0)
    path = tmp_path / "metrics.jsonl"
    for terminal, expected in ((False, ["guided: starting", "guided: step 1 of 2, reward 0.50"]), (True, [])):
        path.unlink(missing_ok=True)
        calls = 0

        def done(seconds: float) -> bool:
            nonlocal calls
            calls += 1
            if calls == 2:
                metrics.append(path, {"step": 1, "time_s": 1.0, "reward": 0.5})
            return calls > 2

        console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
        common.wait_with_progress(console, "guided", path, 2, describe, done)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        if terminal:
            assert "1/2" in text and "left" in text and "reward 0.50" in text
        else:
            assert text.splitlines() == expected
