"""Stop rules inside verl's own `fit`: the loop ends after the right step, with one checkpoint of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytestmark = [pytest.mark.stack, pytest.mark.torch]

STEPS = 9
IDLE = {
    "_start_profiling", "_stop_profiling", "on_step_begin", "on_step_end", "_shutdown_dump_executor",
    "_reissue_inflight_prompts",
}  # fmt: skip
VALUES = [0.1, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]
"""Of the metric, per step: with window 1 and patience 3 the stage ends after step 5."""


def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, save_freq: int = STEPS, start: int = 0) -> Any:
    """verl's `fit` over a step that does nothing, with StopHooks; `log` collects what happened."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.v1 import trainer_base

    from tagpr_rl.backend.tracking.settings import TrackingSettings
    from tagpr_rl.backend.tracking.tracker import StageTracker
    from tagpr_rl.backend.trainer.hooks.stop import StopHooks

    metrics = tmp_path / "metrics.jsonl"
    settings = TrackingSettings(str(metrics), "disabled", str(tmp_path), "p", "g", "s")
    monkeypatch.setattr(trainer_base, "Tracking", lambda **_: StageTracker(settings))
    monkeypatch.setattr(trainer_base, "tq", SimpleNamespace(kv_clear=lambda **_: None))

    class Base:
        fit = trainer_base.PPOTrainer.fit
        log: list[Any]

        def step(self, metrics: dict[str, Any], timing: dict[str, Any]) -> Any:
            self.log.append(self.global_steps)  # type: ignore[attr-defined]
            return SimpleNamespace(keys=[], partition_id="train")

        def _save_checkpoint(self) -> None:
            self.log.append(("save", self.global_steps))  # type: ignore[attr-defined]

        def _compute_metrics(
            self, batch: Any, metrics: dict[str, Any], timing_raw: Any, global_steps: int, epoch: int
        ) -> None:
            metrics["reward/task/mean"] = VALUES[global_steps - 1]

        def on_train_begin(self) -> None: ...

        def on_train_end(self) -> None:
            self.log.append("end")

        def __getattr__(self, name: str) -> Any:
            if name == "_consume_sync_metrics":
                return dict
            if name in IDLE:
                return lambda *_: None
            raise AttributeError(name)

    made: Any = type("Trainer", (StopHooks, Base), {})()
    raw = {
        "trainer": {
            "project_name": "p", "experiment_name": "e", "logger": [], "val_before_train": False, "total_epochs": 99,
            "save_freq": save_freq, "test_freq": -1, "stop": {"plateau": {"window": 1, "patience": 3}},
        },
        "global_profiler": {"steps": None},
        "skip": {"rollout_tq": {"enable": False}},
    }  # fmt: skip
    made.config = OmegaConf.create(raw)
    made.global_steps, made.total_training_steps, made.steps_per_epoch = start, STEPS, 4
    made.log, made.trainer_mode = [], "sync"
    made.checkpoint_manager = SimpleNamespace(sleep_replicas=lambda: made.log.append("sleep"))
    monkeypatch.setattr(trainer_base, "SkipManager", SimpleNamespace(init=lambda _: None, set_step=lambda _: None))
    if start:
        rows = [{"step": i, "reward/task/mean": VALUES[i - 1]} for i in range(1, start + 1)]
        metrics.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return made


def test_fit_ends_after_the_step_and_saves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path, monkeypatch)
    made.fit(None)
    assert made.log == [1, 2, 3, 4, 5, "sleep", ("save", 5), "end"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]


def test_a_step_that_was_saved_anyway_is_not_saved_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path, monkeypatch, save_freq=1)
    made.fit(None)
    assert made.log == [1, ("save", 1), 2, ("save", 2), 3, ("save", 3), 4, ("save", 4), 5, ("save", 5), "end"]


def test_a_resumed_stage_counts_the_steps_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path, monkeypatch, start=4)
    made.fit(None)
    assert made.log == [5, "sleep", ("save", 5), "end"]


def test_without_a_rule_every_step_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path, monkeypatch)
    del made.config.trainer["stop"]
    made.fit(None)
    assert made.log == [1, 2, 3, 4, 5, 6, 7, 8, 9, ("save", 9)]


def test_our_trainers_have_the_hook_before_verl_s_methods() -> None:
    from tagpr_rl.backend.trainer.hooks.stop import StopHooks
    from tagpr_rl.backend.trainer.trainers import TagprSeparateTrainer, TagprTrainer

    for actual in (TagprTrainer, TagprSeparateTrainer):
        order = actual.__mro__
        others = [hooks for hooks in order[1:] if "_compute_metrics" in vars(hooks) and hooks is not StopHooks]
        assert all(order.index(StopHooks) < order.index(hooks) for hooks in others)
