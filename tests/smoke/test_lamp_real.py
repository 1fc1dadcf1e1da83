"""Real LaMP questions through every stage, where they are at hand (they are never part of the project)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAMP = Path(os.environ.get("TAGPR_LAMP_REAL", ROOT / "../shared/data/lamp_real"))

pytestmark = [
    pytest.mark.stack,
    pytest.mark.torch,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not LAMP.is_dir(), reason="no real LaMP questions here (TAGPR_LAMP_REAL)"),
]


def test_all_stages_run_on_official_files(tmp_path: Path) -> None:
    command = [
        sys.executable, "launch.py", "run", "recipes/smoke.yaml", f"out={tmp_path}", f"data.lamp_dir={LAMP}",
        "data.tasks=[LaMP_2,LaMP_4]", "data.prompt.max_tokens=512", "stages.chains.error_rate=0",
        "stages.guided.kl_coef=0", "stages.sft.steps=20", "stages.base.steps=10", "stages.prmu.steps=4",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "smoke" / "report.json").read_text(encoding="utf-8"))
    assert report["questions"]["total"] == 243
    assert report["bounds"] is None  # nobody knows the ceilings of real data
    by_task = report["questions"]["by_task"]
    assert sum(counts["train"] + counts["held_out"] for counts in by_task.values()) == 243
    assert set(report["models"]) == {"base", "sft", "guided", "explore"}
