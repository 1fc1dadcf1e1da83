"""Trackers for real: one W&B run over stages and restarts, outages that stop nothing, TensorBoard after a restart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from wandb_records import records

from tagpr_rl.backend.tracking import wandb_run
from tagpr_rl.backend.tracking.settings import TrackingSettings
from tagpr_rl.backend.tracking.tracker import StageTracker, warnings_file
from tagpr_rl.run import metrics
from tagpr_rl.run.trackers import StepGate

pytestmark = [pytest.mark.stack, pytest.mark.torch]

LOG = """
import json, os, signal, sys
from tagpr_rl.backend.tracking.settings import TrackingSettings
from tagpr_rl.backend.tracking.tracker import StageTracker
given = json.load(sys.stdin)
tracker = StageTracker(TrackingSettings(**given["settings"]), {"lr": 1.5, "api_key": "hunter2"})
for step in given["steps"]:
    tracker.log({"loss": step / 10}, step)
if given["kill"]:
    os.kill(os.getpid(), signal.SIGKILL)
tracker.finish()
"""


def settings(run: Path, stage: str, offset: int, **changes: Any) -> TrackingSettings:
    folder = run / f"010_{stage}"
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        "metrics_file": str(folder / "metrics.jsonl"), "wandb_mode": "offline", "wandb_dir": str(run),
        "project": "p", "group": "demo", "stage": stage, "run_id": "abc123def456", "step_offset": offset,
    }  # fmt: skip
    return TrackingSettings(**(given | changes))


def log(
    which: TrackingSettings, steps: list[int], *, kill: bool = False, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    given = json.dumps({"settings": asdict(which), "steps": steps, "kill": kill})
    return subprocess.run(
        [sys.executable, "-c", LOG],
        input=given,
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )


def wandb_rows(run: Path) -> tuple[set[str], list[dict[str, Any]], str]:
    """Run ids, history rows in order of writing, and all settings as text."""
    ids, rows, text = set(), [], ""
    for path in sorted((run / "wandb").glob("*run-*/run-*.wandb")):
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.add(record.run.run_id)
            if kind == "history":
                items = record.history.item
                rows.append({(i.nested_key[0] if i.nested_key else i.key): json.loads(i.value_json) for i in items})
            if kind in ("run", "config"):
                text += str(record)
    return ids, rows, text


def test_two_stages_and_a_killed_one_are_one_run(tmp_path: Path) -> None:
    (tmp_path / "resolved.json").write_text(json.dumps({"name": "demo", "mirror": "s3://me:pw@bucket/x"}))
    assert log(settings(tmp_path, "sft", 0), [1, 2, 3]).returncode == 0
    guided = settings(tmp_path, "guided", 3)
    assert log(guided, [1, 2, 3], kill=True).returncode == -9
    recorded = [row["train/global_step"] for row in wandb_rows(tmp_path)[1]]
    metrics.trim(Path(guided.metrics_file), 1)  # resumed from the checkpoint of step 1
    assert log(guided, [2, 3, 4]).returncode == 0
    ids, rows, text = wandb_rows(tmp_path)
    assert ids == {"abc123def456"}
    steps = [row["train/global_step"] for row in rows]
    assert steps[:3] == [1, 2, 3] and steps[-3:] == [5, 6, 7]  # the steps past the checkpoint are sent again
    assert steps == [*recorded, 5, 6, 7]  # and no other
    assert [row["guided/step"] for row in rows if "guided/step" in row][-1] == 4
    assert rows[0]["sft/loss"] == 0.1 and rows[-1]["guided/loss"] == 0.4
    assert "lr" in text and "demo" in text and "hunter2" not in text and "me:pw" not in text


def test_rows_that_a_run_does_not_have_are_sent_again_from_metrics_jsonl(tmp_path: Path) -> None:
    which = settings(tmp_path, "sft", 0)
    for step in (1, 2, 3):  # an attempt without W&B
        metrics.append(Path(which.metrics_file), {"step": step, "time_s": 0.0, "loss": step / 10})
    assert log(which, [4, 5]).returncode == 0
    rows = wandb_rows(tmp_path)[1]
    assert [row["train/global_step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["sft/loss"] for row in rows] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


class Recorder:
    """Stands in for a W&B run that says which steps it has."""

    def __init__(self, *, offline: bool, starting_step: int) -> None:
        self.offline, self.starting_step = offline, starting_step
        self.steps: list[int] = []

    def define_metric(self, *names: str, **options: Any) -> None:
        pass

    def log(self, row: dict[str, Any], step: int) -> None:
        self.steps.append(step)


@pytest.mark.parametrize(
    "offline, starting_step, sent",
    [
        (False, 14, [14, 15, 16, 17]),  # the server's last step is 13: checkpoint 15, steps 16 and 17 are made again
        (False, 18, []),  # the server has everything
        (True, 0, [16, 17]),  # offline: rows up to the checkpoint count as recorded
    ],
)
def test_what_is_sent_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool, starting_step: int, sent: list[int]
) -> None:
    which = settings(tmp_path, "guided", 10)
    for step in range(1, 6):
        metrics.append(Path(which.metrics_file), {"step": step, "loss": 1.0})
    gate = StepGate(tmp_path / "wandb_last_step")
    assert gate.admit(17)  # the attempt that was killed had sent step 7
    run = Recorder(offline=offline, starting_step=starting_step)
    monkeypatch.setattr(wandb_run, "start", lambda *_: run)
    sink = wandb_run.WandbSink(which, {}, StepGate(tmp_path / "wandb_last_step"), print)
    for step in (6, 7):
        sink.log({"loss": 2.0}, step)
    assert run.steps == sent


def test_an_unreachable_server_is_said_once_and_training_goes_on_offline(tmp_path: Path) -> None:
    which = settings(tmp_path, "sft", 0, wandb_mode="online")
    # No key: W&B's own error, at once. (An unreachable server takes the start's time limit of 30 s.)
    done = log(
        which, [1, 2], environment={"HOME": str(tmp_path), "WANDB_API_KEY": "", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = warnings_file(tmp_path / "010_sft").read_text().splitlines()
    assert "W&B did not start online" in line and "wandb sync" in line
    assert len((tmp_path / "010_sft" / "metrics.jsonl").read_text().splitlines()) == 2
    assert [row["sft/loss"] for row in wandb_rows(tmp_path)[1]] == [0.1, 0.2]


def test_a_tracker_that_fails_is_left_out_and_named_once(tmp_path: Path) -> None:
    class Broken:
        def log(self, row: dict[str, float], step: int) -> None:
            raise ConnectionError("the line is dead")

    tracker = StageTracker(settings(tmp_path, "sft", 0, wandb_mode="disabled"))
    tracker._sinks["W&B"] = Broken()
    for step in (1, 2):
        tracker.log({"loss": 1.0}, step)
    tracker.finish()
    (line,) = warnings_file(tmp_path / "010_sft").read_text().splitlines()
    assert line == "W&B failed and is left out from here on: ConnectionError: the line is dead"


def test_what_waits_for_a_row_is_called_once_the_row_is_there(tmp_path: Path) -> None:
    tracker = StageTracker(settings(tmp_path, "sft", 0, wandb_mode="disabled"))
    seen: list[int] = []

    def called() -> None:
        seen.append(len((tmp_path / "010_sft" / "metrics.jsonl").read_text().splitlines()))

    tracker.after_row(2, called)
    tracker.log({}, 1)
    assert seen == []
    tracker.log({}, 2)
    tracker.log({}, 3)
    assert seen == [2]
    tracker.after_row(3, called)
    assert seen == [2, 3]


def test_tensorboard_has_each_step_once_after_a_restart(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    which = settings(tmp_path, "guided", 10, wandb_mode="disabled", tensorboard=True)
    first = StageTracker(which)
    for step in (1, 2, 3):
        first.log({"loss": 1.0}, step)
    first.finish()
    metrics.trim(Path(which.metrics_file), 1)  # the checkpoint is of step 1
    again = StageTracker(which)
    for step in (2, 3, 4):
        again.log({"loss": 2.0}, step)
    again.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("guided/loss")
    assert [(event.step, event.value) for event in events] == [(11, 1.0), (12, 2.0), (13, 2.0), (14, 2.0)]


def test_the_results_are_in_the_runs_summary(tmp_path: Path) -> None:
    assert log(settings(tmp_path, "sft", 0), [1]).returncode == 0
    given = {"settings": asdict(settings(tmp_path, "eval", 1)), "results": {"eval/score/sft": 0.853}}
    command = [sys.executable, "-m", "tagpr_rl.backend.tracking.wandb_run"]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]
    actual = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for path in (tmp_path / "wandb").glob("*run-*/run-*.wandb")
        for record in records(path)
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }
    assert actual["eval/score/sft"] == 0.853


def test_verls_trainers_still_end_without_finish_and_the_factory_closes(tmp_path: Path) -> None:
    import inspect

    from verl.trainer import sft_trainer

    from tagpr_rl.backend.tracking.tracker import TrackerFactory

    assert ".finish(" not in inspect.getsource(sft_trainer)
    factory = TrackerFactory(asdict(settings(tmp_path, "sft", 0)))
    tracker = factory(project_name="p", experiment_name="e", default_backend=[], config={"a": 1})
    for step in range(1, 31):
        tracker.log({f"metric/{i}": float(i) for i in range(40)}, step)
    factory.finish()
    assert [row["train/global_step"] for row in wandb_rows(tmp_path)[1]] == list(range(1, 31))


def test_sample_tables_and_alerts_reach_the_run(tmp_path: Path) -> None:
    code = """
import json, sys
from tagpr_rl.backend.tracking.settings import TrackingSettings
from tagpr_rl.backend.tracking.tracker import StageTracker
tracker = StageTracker(TrackingSettings(**json.load(sys.stdin)))
tracker.table("samples", ["kind", "response"], [["best", "<think>x"], ["worst", "y"]])
tracker.log({"prmu/masked_fraction": 0.5}, 1)
tracker.log({"prmu/masked_fraction": 0.5}, 2)
tracker.finish()
"""
    which = settings(tmp_path, "guided", 0, alerts={"masked": 0.1})
    given = json.dumps(asdict(which))
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True)
    assert done.returncode == 0 and not warnings_file(tmp_path / "010_guided").exists(), done.stderr[-2000:]
    (table,) = tmp_path.glob("wandb/*run-*/files/media/table/guided/samples_*.table.json")
    assert json.loads(table.read_text())["data"] == [["best", "<think>x"], ["worst", "y"]]
    actual = [
        record.alert
        for path in (tmp_path / "wandb").glob("*run-*/run-*.wandb")
        for record in records(path)
        if record.WhichOneof("record_type") == "alert"
    ]
    assert [alert.title for alert in actual] == ["guided: masked"] and "50.0%" in actual[0].text


STALL = """
import json, os, signal, sys, time, psutil
from tagpr_rl.backend.tracking import tracker
from tagpr_rl.backend.tracking.settings import TrackingSettings
tracker.FINISH_LIMIT_S = 2.0
made = tracker.StageTracker(TrackingSettings(**json.load(sys.stdin)), {})
made.log({"loss": 1.0}, 1)
service = [p for p in psutil.Process().children(recursive=True) if "wandb" in " ".join(p.cmdline())]
for process in service:
    os.kill(process.pid, signal.SIGSTOP)
made.log({"loss": 2.0}, 2)
made.finish()
for process in service:
    os.kill(process.pid, signal.SIGKILL)
print(len(service), flush=True)
os._exit(0)
"""


def test_a_stopped_service_of_wandb_holds_no_stage(tmp_path: Path) -> None:
    which = settings(tmp_path, "sft", 0)
    done = subprocess.run(
        [sys.executable, "-c", STALL], input=json.dumps(asdict(which)), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and int(done.stdout.split()[-1]) >= 1, done.stderr[-2000:]
    path = Path(which.metrics_file)
    assert [row["loss"] for row in metrics.rows(path)] == [1.0, 2.0]
    warned = warnings_file(path.parent).read_text(encoding="utf-8")
    assert warned == "W&B failed and is left out from here on: TimeoutError: no answer for 2 s\n"
