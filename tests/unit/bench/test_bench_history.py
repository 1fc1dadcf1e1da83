"""The times of a run's stages and the figures of benchmarks beside their past, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from test_bench import load

from tagpr_rl.types import TagprError


@pytest.fixture(scope="module")
def start(root: Path) -> ModuleType:
    return load(root, "start")


@pytest.fixture(scope="module")
def history(root: Path) -> ModuleType:
    return load(root, "history")


def test_steps_after_the_first_are_work_and_the_rest_is_around_them(start: ModuleType) -> None:
    rows = [{"time_s": 20.0}, {"time_s": 21.5}, {"time_s": 24.0}]
    own = start.stage_time("guided", "grpo", 40.0, rows)
    assert (own.steps, own.around, own.other) == (4.0, 36.0, 0.0)
    resumed = [*rows, {"time_s": 9.0}, {"time_s": 10.0}]  # the clock began anew
    assert start.stage_time("guided", "grpo", 60.0, resumed).steps == 5.0
    one = start.stage_time("data", "data", 3.0, [])
    assert (one.steps, one.around, one.other) == (0.0, 0.0, 3.0)


def test_a_figure_is_compared_with_its_own_past_on_the_same_processor(history: ModuleType) -> None:
    def row(processor: str, seconds: float) -> dict[str, object]:
        return {"bench": "trl", "day": "", "note": "", "processor": processor, "figures": {"step": seconds}}

    rows = [row("a", 4.0), row("b", 99.0), row("a", 8.0), row("a", 3.0)]
    assert history.compare(rows) == [("step", 3.0, 6.0, 2)]
    assert history.compare(rows[:2]) == [("step", 99.0, None, 0)]


def test_the_numbers_of_a_json_file_are_kept_and_its_environment_is_not(
    history: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "processor", lambda: "p x 2")
    file, kept = tmp_path / "trl.json", tmp_path / "history.jsonl"
    value = {"sizes": {"8x4": {"step": 2, "all": [1, 2], "ok": True}}, "environment": {"cores": 2}}
    file.write_text(json.dumps(value), encoding="utf-8")
    history.add(kept, "trl", file, "quiet")
    (row,) = history.read_history(kept)
    assert row["figures"] == {"sizes.8x4.step": 2.0} and row["processor"] == "p x 2" and row["note"] == "quiet"
    file.write_text('{"environment": {"cores": 2}}', encoding="utf-8")
    with pytest.raises(TagprError, match="no number in it"):
        history.add(kept, "trl", file, "")
