"""A run ends with the command that uploads what W&B recorded offline."""

from __future__ import annotations

from pathlib import Path

from tagpr_rl.files import write_json
from tagpr_rl.run.layout import RunDir
from tagpr_rl.stages.pipeline import upload_command


def test_the_command_names_the_run_s_own_files(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_json(run.tracking, {"id": "abc123"})
    (tmp_path / "wandb/offline-run-20250101_000000-other").mkdir(parents=True)
    assert upload_command(run) is None
    (tmp_path / "wandb/offline-run-20250101_000000-abc123").mkdir()
    assert upload_command(run) == f"wandb sync --id abc123 {tmp_path}/wandb/offline-run-*-abc123"
