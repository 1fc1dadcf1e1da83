"""`bench/soak.py` on a command that writes a row at a time: it goes on until the end, whatever it loses."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench"))
import soak  # noqa: E402

STEPS = 8
RUN = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[1])
stage = run / "090_guided"
(stage / "hf").mkdir(parents=True, exist_ok=True)
(run / "resolved.json").write_text("{}")
rows = stage / "metrics.jsonl"
first = len(rows.read_text().splitlines()) if rows.exists() else 0
for step in range(first + 1, %d + 1):
    time.sleep(0.2)
    with rows.open("a") as out:
        out.write(json.dumps({"step": step}) + "\\n")
(stage / "hf" / "model.safetensors").write_text("weights")
"""


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands that were started; each goes on with the run `hurt0`."""
    started: list[list[str]] = []

    def launch(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        started.append(list(command))
        code = [sys.executable, "-c", RUN % STEPS, str(tmp_path / "hurt0")]
        return subprocess.Popen(code, start_new_session=True)

    monkeypatch.setattr(soak, "launch", launch)
    monkeypatch.setattr(soak, "WITHIN_S", 0.05)
    return started


def test_a_run_goes_on_after_each_part_that_it_loses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, commands: list[list[str]]
) -> None:
    def hit(process: Any, rng: random.Random) -> str:
        os.kill(process.pid, signal.SIGKILL)
        return "SIGKILL itself"

    monkeypatch.setattr(soak, "hit", hit)
    run = tmp_path / "hurt0"
    taken = soak.lose_parts(run, STEPS, ["run"], tmp_path / "log", random.Random(0))
    assert [len(taken) + 1, *commands[1:]] == [len(commands), *[["resume", str(run), "--until", "guided"]] * len(taken)]
    assert 0 < len(taken) < STEPS and len({text.partition(":")[0] for text in taken}) == len(taken)
    assert list(soak.results(run)) == ["090_guided/hf/model.safetensors"]


def test_a_pipeline_is_killed_as_often_as_asked_for_and_then_ends(tmp_path: Path, commands: list[list[str]]) -> None:
    made, runs = soak.kill_pipelines(tmp_path, ["run"], 3, 0.6, tmp_path / "log", random.Random(1))
    assert len(made) == 3 and runs[-1] == tmp_path / "hurt0"
    assert {"the command alone", "all processes"} >= {text.partition(", ")[2] for text in made}
    assert len(commands) == 3 + len(runs)


def test_a_part_below_the_command_is_stopped_or_killed() -> None:
    code = (
        "import subprocess, sys; subprocess.Popen(['sleep', '60']); sys.stdout.write('x'); sys.stdout.flush(); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.read(1) == b"x"
        assert soak.hit(process, random.Random(2)) in ("SIGKILL sleep", "SIGSTOP sleep")
    finally:
        for part in soak.parts.look("", "no run", above=process.pid):
            os.kill(part.pid, signal.SIGKILL)
        process.kill()
        process.wait()
