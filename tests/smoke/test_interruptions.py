"""Killed runs go on, two runs on one host do not meet."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_runs import SHORT

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
RECIPE = f"""{SHORT}
  guided:
    {{kind: grpo, init: sft, prmu: prmu, steps: 4, prompts_per_step: 8, group_size: 4, save_every: 1,
     reuse_rollout_logprobs: false}}
"""


def start(out: Path) -> subprocess.Popen[str]:
    out.mkdir()
    (out / "short.yaml").write_text(RECIPE, encoding="utf-8")
    return launch("run", str(out / "short.yaml"), f"out={out}")


def launch(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "launch.py", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def steps(metrics: Path) -> list[int]:
    if not metrics.is_file():
        return []
    return [json.loads(line)["step"] for line in metrics.read_text(encoding="utf-8").splitlines()]


def wait_for(process: subprocess.Popen[str], moment: Callable[[], object], what: str) -> None:
    """Wait until `moment()` is true; the process must live until then."""
    deadline = time.monotonic() + 600
    while not moment():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline, f"ten minutes without: {what}"
        time.sleep(0.005)


def killed(process: subprocess.Popen[str], moment: Callable[[], object], what: str) -> None:
    """Kill the driver and the Ray processes it started as soon as `moment()` is true."""
    try:
        wait_for(process, moment, what)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def terminated(process: subprocess.Popen[str], moment: Callable[[], object], what: str) -> None:
    """Ask the driver alone to end at `moment()`, as Slurm does: it answers, and nothing that it started stays."""
    try:
        wait_for(process, moment, what)
        family = in_session(process.pid)
        assert len(family) > 5
        folder = ray_folder(family)
        process.terminate()
        output, _ = process.communicate(timeout=60)  # 5 s on a machine with nothing else to do
        assert process.returncode == 143 and "terminated; the same command goes on" in output, output[-3000:]
        assert "Traceback" not in output and "Stack trace" not in output, output[-3000:]
        deadline = time.monotonic() + 20
        while left := family & in_session(process.pid):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
        assert not folder.exists()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def in_session(leader: int) -> set[int]:
    """Processes of the session that `leader` began."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


def ray_folder(family: set[int]) -> Path:
    """The private folder of the Ray cluster among the processes."""
    for process in family:
        command = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
        if match := re.search(r"(/[^=\0]*/tagpr-\w+)/ray/session_", command):
            assert Path(match[1]).is_dir()
            return Path(match[1])
    raise AssertionError("no process of Ray")


def test_two_runs_side_by_side_then_one_is_ended_three_times_and_goes_on(tmp_path: Path) -> None:
    """SIGTERM in the SFT stage, SIGKILL between two stages and while a checkpoint is written. `b` is undisturbed."""
    run, undisturbed = tmp_path / "a" / "short", tmp_path / "b" / "short"
    sft, guided = run / "050_sft", run / "070_guided"
    first = start(tmp_path / "a")
    second = start(tmp_path / "b")
    resume = ("resume", str(run))
    try:
        terminated(first, lambda: len(steps(sft / "metrics.jsonl")) > 15, "a step of the SFT stage")
        killed(launch(*resume), lambda: (run / "060_prmu" / "manifest.json").exists(), "the end of the PRMU stage")
        third = launch(*resume)
        killed(third, lambda: list(guided.glob("checkpoints/.writing-*/global_step_3/actor/*")), "a third save")
        output, _ = second.communicate(timeout=600)
        assert second.returncode == 0, output[-3000:]
    finally:
        if second.poll() is None:
            os.killpg(second.pid, signal.SIGKILL)
    assert steps(undisturbed / guided.name / "metrics.jsonl") == [1, 2, 3, 4]
    assert not (guided / "manifest.json").exists()

    output, _ = (again := launch(*resume)).communicate(timeout=600)
    assert again.returncode == 0, output[-3000:]
    # Ray's workers outlive their driver for a moment: they may still end the save, or another one.
    after = re.search(r"going on with stage 'guided' after step ([23]) of 4", output)
    assert after is not None and output.count("done before") == 6, output[-3000:]
    notes = {name: json.loads((run / name / "manifest.json").read_text())["notes"] for name in (sft.name, guided.name)}
    assert {"resumed from step 10", "resumed from step 20"} & set(notes[sft.name])
    assert f"resumed from step {after[1]}" in notes[guided.name]
    assert steps(guided / "metrics.jsonl") == [1, 2, 3, 4]
    assert sorted(path.name for path in (guided / "rollouts").iterdir()) == [f"step_{n:04d}.jsonl" for n in range(1, 5)]
    assert prompts(guided) == prompts(undisturbed / guided.name)  # the data went on where they were
    assert losses(sft) == losses(undisturbed / sft.name) and len(losses(sft)) == 30
    for made in ("050_sft/hf/model.safetensors", "060_prmu/prmu/model.safetensors", "070_guided/hf/model.safetensors"):
        assert (run / made).read_bytes() == (undisturbed / made).read_bytes(), made  # to the bit
    for file in sorted((guided / "rollouts").iterdir()):  # responses, rewards, advantages
        assert file.read_bytes() == (undisturbed / guided.name / "rollouts" / file.name).read_bytes(), file.name
    assert list(guided.glob("checkpoints/.writing-*/*")) == []
    ids = {path.name.rsplit("-", 1)[1] for path in (run / "wandb").glob("*run-*")}
    assert ids == {json.loads((run / "tracking.json").read_text(encoding="utf-8"))["id"]}

    # SIGUSR1 two steps into a stage that saves at its end alone.
    changes = ("stages.guided.steps=200", "stages.guided.save_every=null", "name=asked")
    out = ("run", str(tmp_path / "b" / "short.yaml"), f"out={tmp_path / 'b'}")
    asked = launch(*out, *changes, "--from", f"{undisturbed}:prmu")
    stage = tmp_path / "b" / "asked" / guided.name
    wait_for(asked, lambda: len(steps(stage / "metrics.jsonl")) >= 2, "two steps of a stage that saves at its end")
    asked.send_signal(signal.SIGUSR1)
    output, _ = asked.communicate(timeout=120)
    assert asked.returncode == 143 and "the same command goes on" in output, output[-3000:]
    last = steps(stage / "metrics.jsonl")[-1]
    assert last < 200 and (stage / "checkpoints" / f"global_step_{last}" / "manifest.json").is_file()
    assert not (stage / "save_now").exists() and not (stage / "manifest.json").exists()


def losses(stage: Path) -> list[float]:
    lines = (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


def prompts(stage: Path) -> list[list[str]]:
    """Questions of each step."""
    actual = []
    for path in sorted((stage / "rollouts").iterdir()):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        actual.append(sorted({f"{line['task']}/{line['record_id']}" for line in lines}))
    return actual
