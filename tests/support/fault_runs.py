"""A small run with a fault in it: start it in a session of its own, wait for a step, see what it says and leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDED = "070_guided"
SHORT = """
name: short
data:
  prompt: {max_tokens: 512, max_response_tokens: 96}
  world: {train_users: 30, held_out_users: 12, time_users: 4}
log: {wandb: offline}
stages:
  data: {kind: data}
  model: {kind: model}
  prompts: {kind: prompts}
  chains: {kind: chains}
  sft: {kind: sft, init: model, steps: 30, lr: 3e-3, save_every: 10}
  prmu: {kind: prmu, init: sft, steps: 5, batch_size: 8}
"""
"""A recipe's beginning: a guided stage of the test's own follows."""
RECIPE = f"""{SHORT}
  guided:
    {{kind: grpo, init: sft, prmu: prmu, steps: 80, prompts_per_step: 8, group_size: 4, save_every: 1}}
placement: {{prmu_serving: {{restarts: 3, health_s: 4}}}}
"""
"""80 steps of about a second: each fault takes some, and the last of them end the stage."""
Record = Callable[[str, str, str, float], None]
"""Takes (where, fault, what happens, seconds until it has happened) for the table of faults."""
ANSWER_S = 60.0
"""Within this time a fault ends in recovery or in an error."""


@dataclass(frozen=True, slots=True)
class End:
    """How a launched run ended."""

    code: int
    seconds: float
    """From the fault to the end of the process."""
    output: str

    @property
    def error(self) -> str:
        """The line that says why."""
        lines = [line for line in self.output.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.output[-3000:]
        assert "Traceback" not in self.output, self.output[-3000:]
        return lines[0]


class Launched:
    """`tagpr ARGUMENTS` in a session of its own. The output goes to a file, so that no pipe fills."""

    def __init__(self, *arguments: str, log: Path, around: Sequence[str] = (), **environment: str) -> None:
        self.log = log
        self._from = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*around, sys.executable, "launch.py", *arguments], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, env={**os.environ, "COLUMNS": "300", **environment},
            )  # fmt: skip

    @property
    def output(self) -> str:
        with self.log.open("rb") as file:
            file.seek(self._from)
            return file.read().decode("utf-8", "replace")

    def pids(self, title: str = "") -> list[int]:
        """Processes of the session whose command line has `title`; ended ones are left out."""
        actual = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z" and title in command:
                actual.append(int(folder.name))
        return sorted(actual)

    def wait_for(self, moment: Callable[[], object], what: str, seconds: float = 300) -> None:
        """Until `moment()` is true. The run must live until then."""
        deadline = time.monotonic() + seconds
        while not moment():
            assert self.process.poll() is None, f"ended before: {what}\n{self.output[-3000:]}"
            assert time.monotonic() < deadline, f"{seconds:.0f} s without: {what}\n{self.output[-3000:]}"
            time.sleep(0.05)

    def end(self, since: float, seconds: float = 3 * ANSWER_S) -> End:
        """The end of the process; `since`: time.monotonic() of the fault. It is killed if it does not end."""
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{seconds:.0f} s without an end\n{self.output[-3000:]}") from None
        return End(code, time.monotonic() - since, self.output)

    def left(self, seconds: float = 15) -> list[str]:
        """Command lines of the session's processes that are there `seconds` after its end."""
        deadline = time.monotonic() + seconds
        while (pids := self.pids()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:80] for pid in pids]

    def kill(self) -> None:
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def steps(run: Path, stage: str = GUIDED) -> list[int]:
    """Steps in the metrics of a stage."""
    path = run / stage / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.is_file() else []


def prepared(folder: Path) -> Path:
    """A run with all stages before the guided one."""
    (folder / "short.yaml").write_text(RECIPE, encoding="utf-8")
    run = Launched(
        "run", str(folder / "short.yaml"), f"out={folder}", "--until", "prmu", log=folder / "prepared.log"
    )  # fmt: skip
    end = run.end(time.monotonic(), 600)
    assert end.code == 0, end.output[-3000:]
    return folder / "short"
