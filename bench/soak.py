"""Take parts of a run away at random moments, go on each time, and compare the weights with an undisturbed run's.

    python bench/soak.py parts --out /data/soak [--steps 30] [--seed 0] [--base RUN] [key=value ...]
    python bench/soak.py kills --out /data/soak [--kills 50] [--seed 0] [--recipe demo] [key=value ...]

`parts`: a GRPO stage with a checkpoint after each step. In each step, with probability one half, one of the run's
processes, drawn by chance, is killed or stopped at a random moment. The run names the part that it lost and ends, or it
goes on without it. `kills`: `kill -9` of the command, alone or with all that it started, at random moments of a whole
pipeline, until so many have hit; a pipeline that ends before is followed by a fresh one. Each disturbed run must end
with the weights, PRMU and evaluations of the undisturbed one, to the bit.
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
from collections.abc import Sequence
from pathlib import Path

from tagpr_rl.backend.session import parts
from tagpr_rl.files import sha256_file
from tagpr_rl.run import metrics

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ("hf/model.safetensors", "prmu/model.safetensors", "eval.json")
SHORT = ("data.world.train_users=30", "stages.sft.steps=30", "stages.base.steps=5", "stages.prmu.steps=5")
"""The smoke recipe's stages before GRPO, unless they are taken from another run."""
IDLE = ("ray::IDLE", "DashboardAgent", "RuntimeEnvAgent", "/dashboard/", "monitor.py", "resource_tracker")
"""Processes whose loss a run does not feel: Ray's own helpers, and workers without work."""
WITHIN_S = 5.0
"""A part is taken at most so long after the step before has ended."""
END_S = 300.0
"""How long a run may take to notice that a part is gone, on a machine with other work; 60 s on one without."""


def launch(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """launch.py in a session of its own, so that all it starts can be killed."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "launch.py", *command], cwd=ROOT, stdout=out, stderr=out, start_new_session=True
        )


def results(run: Path) -> dict[str, str]:
    """Result of a stage -> SHA-256."""
    files = [file for stage in sorted(run.glob("[0-9]*")) for name in RESULTS if (file := stage / name).is_file()]
    return {str(file.relative_to(run)): sha256_file(file) for file in files}


def undisturbed(command: Sequence[str], run: Path, log: Path) -> tuple[dict[str, str], float]:
    """(results, seconds) of a run that nobody disturbs; one that is finished is not made again."""
    began = time.monotonic()
    if launch(command, log).wait():
        raise SystemExit(f"the undisturbed run failed: {log}")
    return results(run), time.monotonic() - began


def hit(process: subprocess.Popen[bytes], rng: random.Random) -> str:
    """Kill or stop one of the processes below the command that do its work; which one."""
    below = parts.look("", "no run", above=process.pid)
    alive = [part for part in below if part.state not in "ZT" and not any(word in part.title for word in IDLE)]
    if not alive:
        return "nobody was there"
    part, how = rng.choice(sorted(alive, key=lambda one: one.pid)), rng.choice((signal.SIGKILL, signal.SIGSTOP))
    try:
        os.kill(part.pid, how)
    except ProcessLookupError:
        return "it had ended"
    return f"{how.name} {part.title.partition(' ')[0].rpartition('/')[2]}"


def lose_parts(run: Path, steps: int, first: Sequence[str], log: Path, rng: random.Random) -> list[str]:
    """Go on with `run` until it ends, and take a part away in every second step; what was taken, in order."""
    file, taken, command = run / "090_guided" / "metrics.jsonl", [], list(first)
    struck = 0
    while True:
        process = launch(command, log)
        deadline = None
        while process.poll() is None:
            done = len(metrics.rows(file))
            if struck < done < steps:
                struck = done
                if rng.random() < 0.5:
                    time.sleep(rng.uniform(0, WITHIN_S))
                    taken.append(f"step {done + 1}: {hit(process, rng)}")
                    print(taken[-1], flush=True)
                    deadline = time.monotonic() + END_S
            if deadline is not None and len(metrics.rows(file)) > struck:
                deadline = None  # it went on without the part
            if deadline is not None and time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                raise SystemExit(f"the run neither went on nor ended within {END_S:.0f} s after {taken[-1]}")
            time.sleep(0.1)
        if process.returncode == 0:
            return taken
        command = ["resume", str(run), "--until", "guided"]


def kill_pipelines(
    out: Path, recipe: Sequence[str], kills: int, longest: float, log: Path, rng: random.Random
) -> tuple[list[str], list[Path]]:
    """(what each kill was, the runs that were finished between them)."""
    made: list[str] = []
    runs: list[Path] = []
    while len(made) < kills:
        run = out / f"hurt{len(runs)}"
        command = [*recipe, f"name={run.name}"]
        while True:
            process, delay = launch(command, log), rng.uniform(0, longest)
            try:
                if len(made) == kills:
                    delay = 86_400.0
                code = process.wait(delay)
            except subprocess.TimeoutExpired:
                alone = rng.random() < 0.5
                os.kill(process.pid, signal.SIGKILL) if alone else os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                made.append(f"{delay:.1f} s after a start, {'the command alone' if alone else 'all processes'}")
                print(f"kill {len(made)}: {made[-1]}", flush=True)
                command = ["resume", str(run)] if (run / "resolved.json").is_file() else command
                continue
            if code:
                raise SystemExit(f"a run that was not killed failed: {log}")
            runs.append(run)
            break
    return made, runs


def main() -> int:
    """Run, print what was taken away and JSON at the end; 1 if a disturbed run's results differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("parts", "kills"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--base", help="parts: a run of the smoke recipe, whose stages before GRPO are taken")
    parser.add_argument("--longest", type=float, help="seconds from a start to a kill at most; None = half a whole run")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args()  # overrides stand before or after options
    given.out.mkdir(parents=True, exist_ok=True)
    log, rng = given.out / "log.txt", random.Random(given.seed)
    if given.what == "parts":
        recipe = ["run", "smoke", *(() if given.base else SHORT), f"stages.guided.steps={given.steps}"]
        recipe += ["stages.guided.save_every=1", *given.overrides, f"out={given.out}", "--until", "guided"]
        before = ["--from", f"{given.base}:prmu"] if given.base else []
        expected, seconds = undisturbed([*recipe, "name=calm", *before], given.out / "calm", log)
        first = [*recipe, "name=hurt0", "--from", f"{given.out / 'calm'}:prmu"]
        taken = lose_parts(given.out / "hurt0", given.steps, first, log, rng)
        runs = [given.out / "hurt0"]
    else:
        recipe = ["run", given.recipe, *given.overrides, f"out={given.out}"]
        expected, seconds = undisturbed([*recipe, "name=calm"], given.out / "calm", log)
        taken, runs = kill_pipelines(given.out, recipe, given.kills, given.longest or seconds / 2, log, rng)
    equal = [results(run) == expected for run in runs]
    facts = {"seed": given.seed, "seconds": round(seconds), "taken": taken, "runs": len(runs), "equal": sum(equal)}
    print(json.dumps(facts, indent=1))
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
