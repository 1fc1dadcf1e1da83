"""Kill a GRPO stage at random moments of its checkpoint writes, go on each time, compare with an undisturbed run.

    python bench/interrupt.py --out /data/interrupt [--kills 10] [key=value ...]

Both runs are recipes/smoke.yaml with a checkpoint after each step, and the overrides given. The moments are drawn
within the time that a save took in the undisturbed run, so that kills fall before, into and after the writing and the
renaming.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = 12
STAGE = "090_guided"
SHORT = (
    "data.world.train_users=30", "stages.sft.steps=30", "stages.base.steps=5", "stages.prmu.steps=5",
    "stages.guided.save_every=1", f"stages.guided.steps={STEPS}", "stages.guided.kl_coef=0", "log.wandb=offline",
)  # fmt: skip


def launch(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    """launch.py in a session of its own, so that all it starts can be killed."""
    with log.open("ab") as out:
        command = [sys.executable, "launch.py", *arguments, "--until", "guided"]
        return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)


def rows(run: Path) -> list[int]:
    """Steps that metrics.jsonl has."""
    path = run / STAGE / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def asked(run: Path) -> list[list[str]]:
    """Questions of each step, as the rollouts have them."""
    actual = []
    for path in sorted((run / STAGE / "rollouts").iterdir()):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        actual.append(sorted({f"{line['task']}/{line['record_id']}" for line in lines}))
    return actual


def saves(run: Path) -> set[str]:
    """Saves that are being written, or were when their process was killed."""
    return {str(path) for path in (run / STAGE / "checkpoints").glob(".writing-*/global_step_*")}


def kill_in_a_save(process: subprocess.Popen[bytes], run: Path, delay: float, log: Path) -> str:
    """SIGKILL `delay` seconds after the process begins a save; what was there at that moment."""
    left = saves(run)
    while not (new := saves(run) - left):
        if process.poll() is not None:
            raise SystemExit(f"the run ended by itself: {log}")
        time.sleep(0.002)
    time.sleep(delay)
    half = bool(saves(run) & new)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return f"{len(rows(run))} rows, {'mid-write' if half else 'after the write'}"


def main() -> int:
    """Run both, print what each kill met and JSON at the end; 1 where the disturbed run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example stages.guided.strategy=deepspeed"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True)
    log = given.out / "log.txt"
    calm, hurt = (given.out / name / "smoke" for name in ("calm", "hurt"))
    recipe = ("run", "recipes/smoke.yaml", *SHORT, *given.overrides)
    first = launch(*recipe, f"out={calm.parent}", log=log)
    longest, since = 0.0, None
    while first.poll() is None:
        now = time.monotonic()
        since = (since or now) if saves(calm) else None
        longest = max(longest, now - since if since else 0.0)
        time.sleep(0.002)
    if first.returncode:
        raise SystemExit(f"the undisturbed run failed: {log}")
    rng, met = random.Random(given.seed), []
    command = (*recipe, f"out={hurt.parent}")
    for number in range(given.kills):
        process = launch(*command, log=log)
        delay = rng.uniform(0, longest * 1.3)
        met.append(f"{delay:.3f} s into a save: {kill_in_a_save(process, hurt, delay, log)}")
        print(f"kill {number + 1}: {met[-1]}", flush=True)
        command = ("resume", str(hurt))
    last = launch(*command, log=log)
    code = last.wait()
    same = {
        "finished": code == 0,
        "steps": rows(hurt) == list(range(1, STEPS + 1)),
        "data_order": code == 0 and asked(hurt) == asked(calm),
        "one_wandb_run": len({path.name.rsplit("-", 1)[1] for path in (hurt / "wandb").glob("*run-*")}) == 1,
    }
    print(json.dumps({"kills": met, "longest_save_s": round(longest, 3), **same}, indent=1))
    return 0 if all(same.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
