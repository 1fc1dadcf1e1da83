"""`wandb sync` against a server on loopback: every step of a run arrives once, whether or not a process was killed.

The first part holds what W&B does with folders of one id; if it becomes red, docs/guides/tracking.md says too little or
too much.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_runs import recipe
from wandb_server import WandbServer, wandb_server

from tagpr_rl.cli import main
from tagpr_rl.config import dump_recipe
from tagpr_rl.files import write_json
from tagpr_rl.run import metrics
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.trackers import GLOBAL_STEP, step_offset

pytestmark = pytest.mark.stack
PART = """
import sys
from tagpr_rl.backend.tracking.settings import TrackingSettings
from tagpr_rl.backend.tracking.tracker import StageTracker
folder, file, stage, before, *steps = sys.argv[1:]
tracker = StageTracker(TrackingSettings(metrics_file=file, wandb_mode="offline", wandb_dir=folder, project="p",
    group="g", stage=stage, run_id="tagpr123", step_offset=int(before)), {})
for step in map(int, steps):
    tracker.log({"loss": step / 10}, step)
tracker.finish(0)
"""


def sync(server: WandbServer, folder: Path, *arguments: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "NO_PROXY": "127.0.0.1"}
    environment |= {"no_proxy": "127.0.0.1", "WANDB_CACHE_DIR": str(folder), "WANDB_CONFIG_DIR": str(folder)}
    command = [str(Path(sys.executable).parent / "wandb"), "sync", "--yes", *arguments]
    subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True, timeout=120)


def losses(rows: Sequence[dict[str, Any]], run: RunDir) -> list[tuple[int, str, float]]:
    """(W&B's step, stage, loss) of each row; its step is the global one."""
    out = []
    for row in rows:
        ((stage, loss),) = [(key.partition("/")[0], row[key]) for key in row if key.endswith("/loss")]
        assert row[GLOBAL_STEP] == step_offset(recipe(), stage) + row[f"{stage}/step"]
        out.append((row["_step"], stage, loss))
    return out


def test_every_step_is_at_the_server_once(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, made = RunDir(tmp_path / "r"), recipe()
    write_json(run.resolved, dump_recipe(made))
    write_json(run.tracking, {"id": "tagpr123"})
    for stage, steps in (("sft", "123"), ("explore", "12")):
        file = stage_dir(made, run, stage).metrics
        file.parent.mkdir(parents=True)
        command = [sys.executable, "-c", PART, run.root, file, stage, str(step_offset(made, stage)), *steps]
        subprocess.run(list(map(str, command)), cwd=root, check=True, capture_output=True)
    before = {stage: step_offset(made, stage) for stage in ("sft", "explore")}
    expected = [(before["sft"] + n, "sft", n / 10) for n in (1, 2, 3)]
    expected += [(before["explore"] + n, "explore", n / 10) for n in (1, 2)]
    folders = sorted(map(str, (run.root / "wandb").glob("offline-run-*-tagpr123")))
    with wandb_server() as server:
        sync(server, tmp_path, "--id", "tagpr123", *folders)
        assert losses(server.history("tagpr123"), run) == expected and server.replaced == []
    # A process of the guided stage was killed: its rows stand in metrics.jsonl, and W&B has none of them.
    (stage_dir(made, run, "guided").root).mkdir()
    for step in (1, 2):
        metrics.append(stage_dir(made, run, "guided").metrics, {"step": step, "loss": step / 10, "time_s": 1.0})
    assert main(["study", "wandb-files", str(run.root)]) == 0
    *_, folder = capsys.readouterr().out.split()
    guided = [(step_offset(made, "guided") + n, "guided", n / 10) for n in (1, 2)]
    with wandb_server() as server:
        sync(server, tmp_path, folder)
        assert losses(server.history("tagpr123"), run) == [*expected[:3], *guided, *expected[3:]]
        assert server.replaced == []
