"""One GRPO step of this project (verl, vLLM, Ray) beside one of TRL's GRPOTrainer, as a ratio of medians.

Run: python bench/trl.py --trl-python <interpreter with bench/requirements-trl.txt> [--sizes 32x8x256,16x8x128,8x4x64]

Both sides: the same tiny model with random weights, the same prompts in the same order, the rubric without PRMU as
reward, exactly as many new tokens as the size says, fp32, the same number of threads, AdamW, one update per step over
the same micro-batches, old log-probabilities of the rollout (no second forward), no reference model, token-mean loss.
They differ in generation (this project: vLLM in a process of its own; TRL: transformers' `generate`, its default), in
processes (nine under Ray; one), in what is written (every response and every reward component; a line of log), and in
how the end of text is kept away (it is ignored; it has probability 0).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from tagpr_rl.config import GrpoStage, Recipe, dump_recipe, load_recipe, recipe_from_dict
from tagpr_rl.files import write_json, write_parquet
from tagpr_rl.run import checkpoints
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.types import TagprError

BENCH = Path(__file__).resolve().parent
DEMO = BENCH.parent / "recipes" / "demo.yaml"
STAGE = "guided"
PROMPTS = "shuffled.parquet"
PARTS = ("gen", "old_log_prob", "adv", "update_actor", "update_weights")
"""verl's `timing_s/` parts of a step that are worth showing."""
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_TOP_PAD_": "67108864"}
"""As in the project's processes (backend.session.ray_session); TRL gets them too."""


@dataclass(frozen=True, slots=True)
class Size:
    """Work of one step."""

    prompts: int
    group: int
    tokens: int
    """New tokens per sample, exactly."""

    def __str__(self) -> str:
        return f"{self.prompts}x{self.group}x{self.tokens}"


def parse_size(text: str) -> Size:
    """`32x8x256` = 32 prompts, 8 samples each, 256 new tokens."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 32x8x256")
    return Size(*(int(part) for part in parts))


def sized(demo: Recipe, size: Size, steps: int, out: Path) -> Recipe:
    """The demo's data, model and prompts, and one GRPO stage of this size on the untrained model, without PRMU."""
    raw = dump_recipe(demo)
    samples = size.prompts * size.group
    block = {
        **raw["stages"][STAGE],
        "init": "model",
        "prmu": None,
        "weights": {**raw["stages"][STAGE]["weights"], "beta": 0.0},
        "steps": steps,
        "prompts_per_step": size.prompts,
        "group_size": size.group,
        "micro_batch_size": min(32, samples),
        "mini_batches": 1,
        "kl_coef": 0.0,
        "loss_agg": "token-mean",
    }
    raw["stages"] = {
        **{name: stage for name, stage in raw["stages"].items() if stage["kind"] in ("data", "model", "prompts")},
        STAGE: block,
    }
    raw["data"]["prompt"]["max_response_tokens"] = size.tokens
    raw["data"]["world"] |= {"train_users": max(50, size.prompts * steps // 4), "held_out_users": 5, "time_users": 5}
    raw |= {"name": f"trl_{size}", "out": str(out)}
    raw["log"]["wandb"] = "disabled"
    return recipe_from_dict(raw, source=f"{DEMO.name} at {size}")


def trl_job(recipe: Recipe, size: Size, steps: int, model: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What bench/trl_half.py is told: the values of the GRPO stage, and each step's prompts in order."""
    stage = recipe.stages[STAGE]
    assert isinstance(stage, GrpoStage)
    needed = size.prompts * steps
    if len(rows) < needed:
        raise TagprError(f"{size}: {steps} steps need {needed} prompts, the world has {len(rows)}")
    return {
        **asdict(size),
        "steps": steps,
        "model": str(model),
        "micro_batch": stage.micro_batch_size,
        "lr": stage.lr,
        "betas": list(stage.betas),
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.max_grad_norm,
        "clip": stage.clip_low,
        "temperature": stage.temperature,
        "weights": stage.weights.model_dump() if stage.weights is not None else {},
        "seed": stage.seed,
        "threads": recipe.platform.threads,
        "rows": [
            {"prompt": row["prompt"], "task": row["extra_info"]["task"], "gold": row["extra_info"]["gold"]}
            for row in rows[:needed]
        ],
    }


def summarise(rows: Sequence[Mapping[str, Any]], warmup: int, size: Size) -> dict[str, Any]:
    """Medians over the steps after warm-up, and the facts that show the work to be the same.

    Rows: {"step", "seconds", "wall", "tokens", "reward", ...}. TagprError where a step was not of the size.
    """
    measured = rows[warmup:]
    for row in measured:
        if abs(row["tokens"] - size.tokens) > 1e-6:
            raise TagprError(f"{size}: step {row['step']} made {row['tokens']} tokens per sample, not {size.tokens}")
    keys = [key for key in measured[0] if key != "step"]
    return {
        "median": {key: statistics.median(row[key] for row in measured) for key in keys},
        "seconds": [row["seconds"] for row in measured],
        "wall": [row["wall"] for row in measured],
        "steps": len(measured),
        "warmup": warmup,
    }


def verl_rows(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """metrics.jsonl -> rows. `wall` is the time between two lines; the first step has none, so it counts from 0."""
    rows, before = [], 0.0
    for line in lines:
        rows.append(
            {
                "step": line["step"],
                "seconds": line["timing_s/step"],
                "wall": line["time_s"] - before,
                "tokens": line["response_length/mean"],
                "reward": line["reward/total/mean"],
                "entropy": line["actor/entropy_loss"],
                "grad_norm": line["actor/grad_norm"],
                **{part: line[f"timing_s/{part}"] for part in PARTS if f"timing_s/{part}" in line},
            }
        )
        before = line["time_s"]
    return rows


def run_ours(recipe: Recipe, size: Size, folder: Path) -> list[dict[str, Any]]:
    """Train the steps on our backend; rows of the steps."""
    from tagpr_rl.backend.session import ray_session as cluster
    from tagpr_rl.backend.session.room import end_actor, free_devices
    from tagpr_rl.backend.tracking.settings import TrackingSettings
    from tagpr_rl.backend.trainer.grpo import GrpoDriver, ScorerSettings
    from tagpr_rl.backend.trainer.overrides import StagePaths, grpo_overrides

    shutil.rmtree(folder, ignore_errors=True)
    run = RunDir(recipe.out / recipe.name)
    stage = recipe.stages[STAGE]
    assert isinstance(stage, GrpoStage)
    paths = StagePaths(
        model=stage_dir(recipe, run, "model").hf.resolve(),
        train=(run.root / PROMPTS).resolve(),
        checkpoints=(folder / "checkpoints").resolve(),
        rollouts=(folder / "rollouts").resolve(),
    )
    overrides = {
        **grpo_overrides(recipe, STAGE, paths),
        "data.shuffle": False,  # the same prompts in the same steps as TRL
        "actor_rollout_ref.rollout.ignore_eos": True,
        "trainer.save_freq": -1,
    }
    metrics = folder / "metrics.jsonl"
    tracking = TrackingSettings(str(metrics.resolve()), "disabled", str(folder.resolve()), "bench", "bench", STAGE)
    checkpoints.begin(paths.checkpoints, {}, keep=1)  # nothing is saved; the trainer asks for its attempt
    checker = {"schema_file": None, "terms": stage.terms, "folder": "."}
    with cluster.ray_session(recipe) as ray:
        devices = free_devices()
        driver = GrpoDriver.remote()
        scorers = ScorerSettings(checker, prmu=None, health_s=0.0, stall_s=0.0)
        task = driver.run.remote(overrides, scorers, asdict(tracking), recipe.platform.device)
        try:
            ray.get(task)
        finally:
            end_actor(driver, devices)
    return verl_rows([json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()])


def run_trl(python: Path, job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run bench/trl_half.py with `python`: {"rows", "versions"}. Its output goes to <folder>/log.txt."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / "job.json", {**job, "scratch": str((folder / "trainer").resolve())})
    variables = {
        **os.environ, **MALLOC, "OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    # -P: this folder stays off the module path, where trl.py would hide the package.
    command = [str(python), "-P", str(BENCH / "trl_half.py"), str(folder / "job.json"), str(folder / "rows.json")]
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=variables).returncode
    if code:
        tail = "\n".join((folder / "log.txt").read_text(encoding="utf-8").splitlines()[-15:])
        raise TagprError(f"TRL's half ended with {code}; the end of {folder / 'log.txt'}:\n{tail}")
    actual: dict[str, Any] = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    return actual


def measure(size: Size, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Both sides at one size, TRL first, nothing at the same time."""
    import pyarrow.parquet as pq

    from tagpr_rl.stages.pipeline import run_pipeline

    steps = args.warmup + args.steps
    recipe = sized(load_recipe(DEMO), size, steps, args.out)
    run = RunDir(recipe.out / recipe.name)
    with (args.out / "prepare.log").open("a", encoding="utf-8") as log:
        run_pipeline(recipe, run, until="prompts", console=Console(file=log))
    rows = pq.read_table(stage_dir(recipe, run, "prompts").root / "train.parquet").to_pylist()
    random.Random(0).shuffle(rows)  # the file goes task by task
    write_parquet(run.root / PROMPTS, rows)
    job = trl_job(recipe, size, steps, stage_dir(recipe, run, "model").hf.resolve(), rows)
    console.print(f"{size}: TRL, {steps} steps", highlight=False)
    trl = run_trl(args.trl_python, job, run.root / "trl")
    console.print(f"{size}: ours, {steps} steps", highlight=False)
    actual = {
        "ours": summarise(run_ours(recipe, size, run.root / "ours"), args.warmup, size),
        "trl": summarise(trl["rows"], args.warmup, size),
        "trl_versions": trl["versions"],
    }
    return {**actual, "ratio": ratios(actual["ours"], actual["trl"])}


def ratios(ours: Mapping[str, Any], trl: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Both ways round, of `seconds` (within a step) and `wall` (from step to step).

    `time`: our seconds / TRL's, above 1 = ours is slower. `speed`: its inverse, above 1 = ours is faster.
    """
    times = {key: ours["median"][key] / trl["median"][key] for key in ("seconds", "wall")}
    return {"time": times, "speed": {key: 1 / value for key, value in times.items()}}


def show(sizes: Mapping[str, Any], console: Console) -> None:
    """Print the medians and ratios, and what shows that both did the same work."""
    table = Table("prompts x samples x tokens", "", title="Seconds per GRPO step, medians")
    for heading in ("ours", "TRL", "time, ours / TRL", "speed, TRL / ours"):
        table.add_column(heading, justify="right")
    for name, actual in sizes.items():
        own, trl, ratio = actual["ours"]["median"], actual["trl"]["median"], actual["ratio"]
        for key, label in (("seconds", "step"), ("wall", "step to step")):
            cells = (f"{own[key]:.3f}", f"{trl[key]:.3f}", f"{ratio['time'][key]:.2f}", f"{ratio['speed'][key]:.2f}")
            table.add_row(name if key == "seconds" else "", label, *cells)
        for key in ("tokens", "reward", "entropy", "grad_norm"):
            table.add_row("", key, f"{own[key]:.3f}", f"{trl[key]:.3f}")
        for part in PARTS:
            if part in own:
                table.add_row("", f"verl: {part}", f"{own[part]:.3f}")
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", type=Path, required=True, help="interpreter of an environment with TRL")
    parser.add_argument(
        "--sizes", type=lambda text: [parse_size(part) for part in text.split(",")], default="32x8x256,16x8x128,8x4x64"
    )
    parser.add_argument("--steps", type=int, default=5, help="measured steps")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_trl"))
    args = parser.parse_args()
    if args.steps < 1 or args.warmup < 0:
        parser.error("--steps must be at least 1 and --warmup at least 0")
    return args


def main() -> None:
    args = _arguments()
    console = Console(width=None if sys.stdout.isatty() else 140)
    # Ray's workers take this path over, and verl looks for a package `trl`: this file is not it.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != BENCH]
    if not args.trl_python.is_file():
        raise TagprError(f"--trl-python {args.trl_python}: no such file; make one from bench/requirements-trl.txt")
    args.out.mkdir(parents=True, exist_ok=True)
    sizes = {str(size): measure(size, args, console) for size in args.sizes}
    from tagpr_rl.stages.pipeline import describe_environment

    write_json(args.out / "trl.json", {"sizes": sizes, "environment": describe_environment()})
    show(sizes, console)
    console.print(f"{args.out / 'trl.json'}", soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    try:
        main()
    except TagprError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
