"""Where a GRPO step's time goes: phases, driver-only time, the logging hook's own and the wait for PRMU, each against
its bar.

Run: python bench/step.py [--run runs/demo] [--prompts 32,160] [--steps 5] [--out FILE] [--keep FOLDER]

`--run` is a run whose stages before its first GRPO stage are done; without it recipes/smoke.yaml is run that far. For
each number of prompts a step (the demo's 32; 160 make steps of about 20 s on two cores) that stage is trained on the
run's own model, data and PRMU for `--steps` steps after a first one that is left out (engines start in it).
`prmu_wait` runs from the end of a step's last rollout to its last score.
`driver_only` is the step without verl's timers of generation, scoring, log-probabilities, advantage, update, weight
sync and checkpoint (monitor/phases.py); `driver_strict` counts advantage and checkpoint as the driver's too;
`outside` is the time between two logged rows without the step: verl's own figures, ours, the rollout file, tracking.
One JSON object on standard output.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from tagpr_rl.config import GrpoStage, Recipe, dump_recipe, recipe_from_dict
from tagpr_rl.files import write_json
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.open import read_resolved

ROOT = Path(__file__).resolve().parents[1]
DRIVER_BAR, HOOK_BAR, WAIT_BAR, BAR_STEP_S = 0.05, 0.01, 0.02, 20.0
STRICT = ("advantage", "checkpoint")


def first_grpo(recipe: Recipe) -> str:
    """Name of the recipe's first GRPO stage."""
    return next(name for name, stage in recipe.stages.items() if isinstance(stage, GrpoStage))


def derive(recipe: Recipe, prompts: int, steps: int, out: Path) -> Recipe:
    """The recipe with `prompts` a step in its first GRPO stage, `steps` steps and one, and nothing after it."""
    raw = dump_recipe(recipe)
    name = first_grpo(recipe)
    stages = list(raw["stages"].items())[: list(raw["stages"]).index(name)]
    changed = {
        "prompts_per_step": prompts, "steps": steps + 1, "lr_warmup_steps": 0, "save_every": None,
        "log": {"table_every": 1},
    }  # fmt: skip
    raw |= {"name": f"step_{prompts}", "out": str(out), "stages": {**dict(stages), name: raw["stages"][name] | changed}}
    raw["log"]["wandb"] = "offline"
    return recipe_from_dict(raw, source=f"bench/step.py at {prompts} prompts")


def copy_stages(recipe: Recipe, run: RunDir, to: Recipe) -> None:
    """The finished stages before the first GRPO stage of `to`, copied into its run's folder."""
    target = RunDir(to.out / to.name)
    for stage in list(to.stages)[:-1]:
        folder = stage_dir(recipe, run, stage)
        if folder.manifest.is_file():
            shutil.copytree(folder.root, stage_dir(to, target, stage).root)


def summarise(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Medians and shares over the rows after the first. A share is of the steps' total seconds."""
    measured = rows[1:]
    steps = [row["timing_s/step"] for row in measured]
    outside = [
        row["time_s"] - before["time_s"] - row["timing_s/step"] for before, row in zip(rows, measured, strict=False)
    ]
    keys = dict.fromkeys(key for row in measured for key in row if key.startswith("phase/") and key.endswith("_s"))
    names = [key[len("phase/") : -len("_s")] for key in keys]
    phases = {name: sum(row.get(f"phase/{name}_s", 0.0) for row in measured) for name in names}
    driver = [row["driver/only_s"] for row in measured]
    hook = [row["driver/hook_s"] for row in measured]
    waits = [row.get("timing_s/prmu_wait", 0.0) for row in measured]
    total = sum(steps)
    strict = sum(driver) + sum(phases.get(name, 0.0) for name in STRICT)
    return {
        "steps": len(measured),
        "step_s": statistics.median(steps),
        "seconds": [round(value, 3) for value in steps],
        "phase_shares": {name: round(value / total, 4) for name, value in phases.items()},
        "driver_only_s": statistics.median(driver),
        "driver_only_share": sum(driver) / total,
        "driver_strict_share": strict / total,
        "hook_s": statistics.median(hook),
        "hook_share": sum(hook) / total,
        "prmu_wait_s": statistics.median(waits),
        "prmu_wait_share": sum(waits) / total,
        "outside_s": statistics.median(outside),
        "driver_and_outside_share": (sum(driver) + sum(outside)) / (total + sum(outside)),
        "staleness": measured[-1]["staleness/mean"],
    }


def bars(result: Mapping[str, Any]) -> dict[str, Any]:
    """Each share against its bar; the bars hold for steps of about 20 s."""
    return {
        "about_20_s": result["step_s"] >= 0.75 * BAR_STEP_S,
        "driver_only_at_most_5_percent": result["driver_only_share"] <= DRIVER_BAR,
        "hook_at_most_1_percent": result["hook_share"] <= HOOK_BAR,
        "prmu_wait_at_most_2_percent": result["prmu_wait_share"] <= WAIT_BAR,
    }


def launch(recipe: Recipe, until: str) -> None:
    """Run a recipe up to a stage, its output on standard error."""
    recipe.out.mkdir(parents=True, exist_ok=True)
    file = recipe.out / f"{recipe.name}.yaml"
    file.write_text(yaml.safe_dump(dump_recipe(recipe), sort_keys=False), encoding="utf-8")
    command = [sys.executable, "launch.py", "run", str(file), "--until", until]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)


def measure(recipe: Recipe, run: RunDir, prompts: int, steps: int, out: Path) -> dict[str, Any]:
    """Train the steps and summarise their rows."""
    derived = derive(recipe, prompts, steps, out)
    copy_stages(recipe, run, derived)
    name = first_grpo(derived)
    launch(derived, name)
    folder = stage_dir(derived, RunDir(out / derived.name), name)
    rows = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    stage = derived.stages[name]
    assert isinstance(stage, GrpoStage)
    result = {"prompts": prompts, "group": stage.group_size} | summarise(rows)
    result["responses"] = prompts * stage.group_size
    return result | {"bars": bars(result)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every size; print one JSON object."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, help="a run's folder; default: recipes/smoke.yaml is run")
    options.add_argument("--prompts", default="32,160", help="prompts a step, separated by commas (32,160)")
    options.add_argument("--steps", type=int, default=5, help="steps that count, after one that does not (5)")
    options.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there, too")
    options.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the runs there")
    arguments = options.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        out = (arguments.keep or Path(scratch)).resolve()
        run = RunDir(arguments.run or out / "smoke")
        if arguments.run is None:
            command = [sys.executable, "launch.py", "run", "recipes/smoke.yaml", f"out={out}", "--until", "prmu"]
            subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        recipe = read_resolved(run)
        sizes = [int(part) for part in arguments.prompts.split(",")]
        actual = {"sizes": [measure(recipe, run, prompts, arguments.steps, out) for prompts in sizes]}
    if arguments.out is not None:
        write_json(arguments.out, actual)
    print(json.dumps(actual))
    return 0


if __name__ == "__main__":
    sys.exit(main())
