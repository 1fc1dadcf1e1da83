"""`tagpr status`: running, interrupted and finished stages told apart. The run is made by hand."""

from __future__ import annotations

import fcntl
import re
from pathlib import Path

import pytest
from made_runs import finish, recipe, save

from tagpr_rl.cli import main
from tagpr_rl.config import dump_recipe
from tagpr_rl.files import write_json
from tagpr_rl.run import checkpoints, metrics
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.metrics import duration, seconds_left


def rows_of(text: str) -> dict[str, list[str]]:
    """Stage -> cells of its row."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line[:1] == "│"]
    return {row[0]: row[1:] for row in rows if row[0]}


def interrupted(run: RunDir, *, checkpoint: int) -> None:
    """A run that was killed in the guided stage."""
    write_json(run.resolved, dump_recipe(recipe()))
    for name in list(recipe().stages)[:7]:
        finish(recipe(), run, name)
    folder = stage_dir(recipe(), run, "guided").checkpoints
    save(folder, checkpoint, checkpoints.begin(folder, {"a": 1}, keep=2))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "r")


def test_an_interrupted_stage(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    interrupted(run, checkpoint=4)
    for step in range(1, 7):
        row = {"step": step, "time_s": 10.0 * step, "reward/total/mean": step / 100}
        metrics.append(stage_dir(recipe(), run, "guided").metrics, row)
    write_json(run.report_json, {"models": {"sft": {"mean": 0.375}}})
    run.report_html.write_text("")
    assert main(["status", str(run.root)]) == 0
    out = capsys.readouterr().out
    rows = rows_of(out)
    assert rows["sft"][1] == "done" and rows["sft"][-1] == "0.375"
    assert rows["guided"][1:3] == ["interrupted", "6 of 20"] and rows["guided"][3].startswith("goes on after")
    assert rows["guided"][-1] == "reward 0.060"
    assert rows["explore"][1:] == ["todo", "", "", ""]
    assert f"report: {run.report_html}" in out and out.endswith(f"next: tagpr resume {run.root}\n")


def test_a_running_stage_has_time_left(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    interrupted(run, checkpoint=4)
    for step in range(1, 7):
        metrics.append(stage_dir(recipe(), run, "guided").metrics, {"step": step, "time_s": 10.0 * step})
    with run.lock.open("w") as handle:
        handle.write("4711")
        handle.flush()
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert main(["status", str(run.root)]) == 0
    out = capsys.readouterr().out
    assert rows_of(out)["guided"][1:4] == ["running", "6 of 20", "2 min left"]  # 14 steps of 10 s
    assert "(process 4711 works on it)" in out and f"next: tagpr status {run.root}" in out


def test_a_finished_run(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    interrupted(run, checkpoint=4)
    for name in ("guided", "explore", "eval"):
        finish(recipe(), run, name)
    assert main(["status", str(run.root)]) == 0
    out = capsys.readouterr().out
    assert {row[1] for name, row in rows_of(out).items() if name != "stage"} == {"done"}
    assert re.search(r"next: tagpr compare .* <another run>", out)


def test_a_recipe_that_was_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "demo", f"out={tmp_path}"]) == 0
    assert capsys.readouterr().out.endswith("next: tagpr run demo\n")


def test_time_left_counts_from_the_last_start() -> None:
    rows = [{"step": 1, "time_s": 100.0}, {"step": 2, "time_s": 200.0}, {"step": 3, "time_s": 50.0}]
    assert seconds_left(rows, 9) is None  # one row since the restart
    rows += [{"step": 5, "time_s": 90.0}]
    assert seconds_left(rows, 9) == 80.0  # 40 s for 2 steps, 4 steps to go
    assert seconds_left([], 9) is None


@pytest.mark.parametrize("seconds, text", [(42.4, "42 s"), (119.0, "2 min"), (9000.0, "2.5 h")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
