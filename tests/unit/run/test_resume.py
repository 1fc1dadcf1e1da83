"""Where a run goes on, why it cannot, and that one process at a time works on it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from made_runs import finish, finish_all, recipe, save

from tagpr_rl.cli import main
from tagpr_rl.config import dump_recipe
from tagpr_rl.files import write_json
from tagpr_rl.run import checkpoints
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import stage_facts
from tagpr_rl.run.resume import ATTEMPT, exclusive, resume_point
from tagpr_rl.types import TagprError


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "r")


def interrupted(run: RunDir, *, checkpoint: int = 0) -> None:
    """A run that was killed in the guided stage."""
    r = recipe()
    write_json(run.resolved, dump_recipe(r))
    for name in r.stages:
        if name == "guided":
            break
        finish(r, run, name)
    folder = stage_dir(r, run, "guided")
    write_json(folder.root / ATTEMPT, asdict(stage_facts(r, run, "guided")))
    if checkpoint:
        save(folder.checkpoints, checkpoint, checkpoints.begin(folder.checkpoints, {"a": 1}, keep=2))


def test_between_stages_mid_stage_and_finished(run: RunDir) -> None:
    interrupted(run)
    point = resume_point(recipe(), run)
    assert (len(point.done), point.stage, point.step, point.steps) == (7, "guided", 0, 20)
    assert point.describe().endswith("going on with stage 'guided', from its start (it has no checkpoint yet)")
    interrupted(run, checkpoint=4)
    assert resume_point(recipe(), run).describe().endswith("going on with stage 'guided' after step 4 of 20")
    finish_all(recipe(), run)
    assert resume_point(recipe(), run).stage is None


def test_a_recipe_or_input_that_changed_since_the_interruption_is_named(run: RunDir) -> None:
    interrupted(run, checkpoint=4)
    with pytest.raises(TagprError, match=r"config\.stage\.lr: 0\.0003 -> 0\.1"):
        resume_point(recipe(lambda raw: raw["stages"]["guided"].update(lr=0.1)), run)
    finish(recipe(), run, "prompts", "other prompts")
    with pytest.raises(TagprError, match="stage 'guided' was interrupted") as caught:
        resume_point(recipe(), run)
    assert "inputs.stage prompts: " in str(caught.value)


def test_settings_that_change_no_result_may_change(run: RunDir) -> None:
    interrupted(run, checkpoint=4)
    r = recipe(lambda raw: raw["stages"]["guided"].update(save_every=1, keep_checkpoints=5))
    assert resume_point(r, run).step == 4


def test_a_damaged_attempt_is_named(run: RunDir) -> None:
    interrupted(run)
    (stage_dir(recipe(), run, "guided").root / ATTEMPT).write_text("{")
    with pytest.raises(TagprError, match=r"attempt\.json is not valid JSON"):
        resume_point(recipe(), run)


def test_one_process_at_a_time_and_a_killed_one_holds_nothing(run: RunDir) -> None:
    code = (
        "import sys; from pathlib import Path; from tagpr_rl.run.layout import RunDir\n"
        "from tagpr_rl.run.resume import exclusive\n"
        "with exclusive(RunDir(Path(sys.argv[1]))): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, run.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(TagprError, match=f"is being worked on by process {holder.pid}"), exclusive(run):
        pass
    holder.kill()
    holder.wait()
    with exclusive(run):
        assert run.lock.read_text() == str(os.getpid())


def test_who_looks_for_a_moment_keeps_no_run_from_starting(run: RunDir) -> None:
    run.root.mkdir(parents=True, exist_ok=True)
    with run.lock.open("w") as look:  # as `working_process` does, which `tagpr watch` calls again and again
        fcntl.flock(look, fcntl.LOCK_SH)
        threading.Timer(0.15, lambda: fcntl.flock(look, fcntl.LOCK_UN)).start()
        with exclusive(run):
            assert run.lock.read_text() == str(os.getpid())


def go(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for the stages: finishes those that are left."""
    calls: list[dict[str, Any]] = []

    class Module:
        @staticmethod
        def run_pipeline(r: Any, run: RunDir, *, until: str | None = None) -> None:
            calls.append({"run": run, "until": until})
            for name in list(r.stages)[7:]:
                finish(r, run, name)
                if name == until:
                    break

    monkeypatch.setitem(sys.modules, "tagpr_rl.stages.pipeline", Module)  # type: ignore[arg-type]
    return calls


def test_resume_goes_on_with_the_runs_own_recipe(
    run: RunDir, pipeline: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(run, checkpoint=4)
    assert go("resume", run.root, "--until", "guided") == 0
    assert "after step 4 of 20" in capsys.readouterr().out
    assert [(call["run"].root, call["until"]) for call in pipeline] == [(run.root, "guided")]
    assert go("resume", run.root) == 0
    assert go("resume", run.root) == 0
    assert "nothing to resume: all 10 stages are done" in capsys.readouterr().out
    assert len(pipeline) == 2


def test_resume_never_reports_success_with_work_left(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, pipeline: list[Any]
) -> None:
    interrupted(run)
    monkeypatch.setattr(sys.modules["tagpr_rl.stages.pipeline"], "run_pipeline", lambda *a, **k: None)
    with pytest.raises(AssertionError, match="unfinished stages: \\['guided', 'explore', 'eval'\\]"):
        go("resume", run.root)


def test_resume_says_why_it_cannot(
    run: RunDir, tmp_path: Path, pipeline: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(run)
    raw = json.loads(run.resolved.read_text())
    raw["stages"]["sft"]["lr"] = 0.5
    write_json(run.resolved, raw)
    for target, said in (
        (tmp_path / "nowhere", "is no run's folder"),
        (tmp_path, "it has no resolved.json"),
        (run.root, "stage 'sft': stage.lr: 0.003 -> 0.5"),
        ("file:///nowhere/x", "holds no run"),
        ("nosuch://x/y", "nosuch://x/y: opening it failed"),
    ):
        assert go("resume", target) == 2
        assert said in capsys.readouterr().err
    assert go("resume", run.root, "--until", "stf") == 2
    assert go("resume", run.root, "stages.sft.lr=1") == 2
    assert pipeline == []


def test_results_for_the_trackers_are_the_finished_stages_figures(run: RunDir) -> None:
    from tagpr_rl.stages.common import results

    interrupted(run)
    actual = results(recipe(), run)
    assert actual["sft/m"] == 0.25 and actual["sft/seconds"] == 1.5
    assert not [key for key in actual if key.startswith(("guided/", "explore/"))]
