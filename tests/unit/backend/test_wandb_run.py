"""The shell's WANDB_ variables do not decide about a run's parts at W&B."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tagpr_rl.backend.tracking.wandb_run import drop_variables, keeps_back

SHELL = {
    "WANDB_SWEEP_ID": "abc", "WANDB_RUN_ID": "zzz", "WANDB_MODE": "disabled", "WANDB_PROJECT": "other",
    "WANDB_DIR": "/nowhere", "WANDB_RESUME": "must", "WANDB_DISABLED": "true", "WANDB_RESUME_FROM": "x?_step=3",
    "WANDB_LAUNCH": "true", "WANDB_NAME": "n", "WANDB_RUN_GROUP": "g",
}  # fmt: skip
KEPT = {"WANDB_API_KEY": "k", "WANDB_BASE_URL": "http://h", "WANDB_ENTITY": "e", "WANDB_CACHE_DIR": "/c"}
PART = """
import sys
from tagpr_rl.backend.tracking.settings import TrackingSettings
from tagpr_rl.backend.tracking.tracker import StageTracker
folder, stage, before = sys.argv[1:]
tracker = StageTracker(TrackingSettings(
    metrics_file=f"{folder}/{stage}/metrics.jsonl", wandb_mode="offline", wandb_dir=folder, project="p", group="g",
    stage=stage, run_id="tagpr123", step_offset=int(before)), {})
tracker.log({"loss": 1.0}, 1)
tracker.finish(0)
"""


def test_what_would_win_over_the_recipe_is_taken_out_and_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in (SHELL | KEPT).items():
        monkeypatch.setenv(name, value)
    warnings: list[str] = []
    assert drop_variables(warnings.append) == SHELL
    assert {name: value for name, value in os.environ.items() if name.startswith("WANDB_")} == KEPT
    assert len(warnings) == 1 and all(name in warnings[0] for name in SHELL)
    assert drop_variables(warnings.append) == {} and len(warnings) == 1


def test_what_the_shell_keeps_back_stays_on_the_machine() -> None:
    for name, values in {"WANDB_MODE": ("offline", "DISABLED", "dryrun"), "WANDB_DISABLED": ("true", "1")}.items():
        assert all(keeps_back({name: value}) for value in values)
    assert not keeps_back({"WANDB_MODE": "online", "WANDB_DISABLED": "false", "WANDB_NAME": "offline"})


@pytest.mark.stack
def test_two_stages_under_a_sweep_s_agent_are_one_run(tmp_path: Path, root: Path) -> None:
    for stage, before in (("sft", "0"), ("guided", "2")):
        command = [sys.executable, "-c", PART, str(tmp_path), stage, before]
        subprocess.run(command, env={**os.environ, **SHELL}, cwd=root, check=True, capture_output=True)
    runs = {path.name.rsplit("-", 1)[1] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert runs == {"tagpr123"}
    assert all("WANDB_SWEEP_ID" in path.read_text() for path in tmp_path.glob("*/tracking_warnings.txt"))
