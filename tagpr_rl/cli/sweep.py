"""`tagpr sweep`: train every arm of a sweep for every seed, compare them, write sweep.json."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tagpr_rl.cli.arguments import Overrides, full_install, say, warn
from tagpr_rl.eval.arms import compare_arms, question_scores
from tagpr_rl.files import write_json, write_text
from tagpr_rl.preflight.examine import planned, require_ready
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import read_manifest
from tagpr_rl.run.open import recipe_path
from tagpr_rl.run.state import require_unchanged, run_status
from tagpr_rl.run.sweep import EVAL, SeedPlan, Sweep, load_sweep, plan_seed
from tagpr_rl.types import TagprError

FORMAT = 1


def command(
    sweep: Annotated[
        str, typer.Argument(metavar="SWEEP", help="A YAML file, or a shipped sweep's name such as sweeps/ablations.")
    ],
    overrides: Overrides = None,
    seeds: Annotated[str | None, typer.Option(metavar="N,N", help="Only these of the sweep's seeds.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print every seed's stages; run nothing.")] = False,
) -> None:
    """Train every arm of SWEEP for every seed, and compare the arms on the same questions.

    Stages that several arms share are made once. sweep.json and the table grow with every finished seed; started
    again, the command goes on.

    Example: tagpr sweep sweeps/ablations --seeds 1,2
    """
    console = Console()
    arms = load_sweep(recipe_path(sweep), overrides or ())
    chosen = _seeds(seeds) if seeds is not None else arms.seeds
    if unknown := set(chosen) - set(arms.seeds):
        raise TagprError(f"--seeds {sorted(unknown)[0]}: the sweep's seeds are {', '.join(map(str, arms.seeds))}")
    plans = {seed: plan_seed(arms, seed) for seed in arms.seeds}
    runs = {seed: RunDir(plan.recipe.out / plan.recipe.name) for seed, plan in plans.items()}
    for seed in chosen:  # what would stop the last seed is said before the first one starts
        require_unchanged(plans[seed].recipe, runs[seed])
    told: dict[str, None] = {}  # most warnings are those of every seed
    for seed in chosen:
        require_ready(planned(plans[seed].recipe, runs[seed]), lambda line: told.setdefault(line))
    for line in told:
        warn(line)
    if dry_run:
        for seed in chosen:
            _show_plan(plans[seed], runs[seed], console)
        return
    folder = arms.out / arms.name
    for position, seed in enumerate(chosen, start=1):
        plan = plans[seed]
        states = run_status(plan.recipe, runs[seed])
        done = sum(state.status == "done" for state in states.values())
        console.rule(
            f"{arms.name}: seed {seed} ({position} of {len(chosen)}), {len(plan.models)} arms, "
            f"{done} of {len(states)} stages done"
        )
        runs[seed].root.mkdir(parents=True, exist_ok=True)
        if done < len(states):
            full_install("tagpr_rl.stages.pipeline").run_pipeline(plan.recipe, runs[seed], console=console)
        finished = [other for other in arms.seeds if read_manifest(_evaluation(plans[other], runs[other])) is not None]
        facts = results(arms, [plans[other] for other in finished], [runs[other] for other in finished])
        write_json(folder / "sweep.json", facts)
    table = summary(facts)
    console.print(table)
    text = io.StringIO()
    Console(width=120, file=text).print(table)
    write_text(folder / "sweep.txt", text.getvalue())
    say(folder / "sweep.json")


def _seeds(text: str) -> tuple[int, ...]:
    if re.fullmatch(r"[0-9]{1,10}(,[0-9]{1,10})*", text) is None:
        raise TagprError(f"--seeds {text}: not a list of whole numbers such as 1,2,3")
    seeds = tuple(map(int, text.split(",")))
    if len(set(seeds)) < len(seeds):
        raise TagprError(f"--seeds {text}: a seed stands twice")
    return seeds


def _evaluation(plan: SeedPlan, run: RunDir) -> Any:
    return stage_dir(plan.recipe, run, EVAL)


def _show_plan(plan: SeedPlan, run: RunDir, console: Console) -> None:
    table = Table("stage", "kind", "state", "final model of", title=f"{run.root}")
    for name, state in run_status(plan.recipe, run).items():
        arms = [arm for arm, stage in plan.models.items() if stage == name]
        table.add_row(name, state.kind, state.status, ", ".join(arms))
    console.print(table)


def results(sweep: Sweep, plans: Sequence[SeedPlan], runs: Sequence[RunDir]) -> dict[str, Any]:
    """What sweep.json holds, over the finished seeds."""
    scores: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in plans[0].models}
    also: dict[str, dict[int, dict[str, float]]] = {name: {} for name in plans[0].also}
    seconds: dict[str, float] = {}
    users: dict[str, str] = {}
    tasks: dict[str, str] = {}
    for plan, run in zip(plans, runs, strict=True):
        models = _read(_evaluation(plan, run).root / "eval.json")["models"]
        for arm, stage in plan.models.items():
            scores[arm][plan.seed] = question_scores(models[stage], sweep.metric)
        for name, stage in plan.also.items():
            also[name][plan.seed] = question_scores(models[stage], sweep.metric)
        questions = models[next(iter(plan.models.values()))]["questions"]
        users |= {question["key"]: question["user_id"] for question in questions}
        tasks |= {question["key"]: question["task"] for question in questions}
        made = [read_manifest(stage_dir(plan.recipe, run, name)) for name in plan.recipe.stages]
        seconds[str(plan.seed)] = round(sum(manifest.seconds for manifest in made if manifest is not None), 1)
    overrides = sweep.all_arms()
    compared = compare_arms({**scores, **{f"also {name}": rows for name, rows in also.items()}}, users, tasks)
    data = next(name for name, stage in plans[0].recipe.stages.items() if stage.kind == "data")
    bounds = _read(stage_dir(plans[0].recipe, runs[0], data).root / "data.json").get("bounds") or {}
    return {
        "format": FORMAT,
        "name": sweep.name,
        "seeds": [plan.seed for plan in plans],
        "metric": sweep.metric,
        "arms": {arm: {"overrides": overrides[arm], **compared[arm]} for arm in scores},
        "also": {name: compared[f"also {name}"] for name in also},
        "grid": {key: list(values) for key, values in sweep.grid.items()},
        "bounds": {name: bound["mean"] for name, bound in bounds.items()},
        "questions": len(tasks),
        "users": len(set(users.values())),
        "seconds": seconds,
    }


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def summary(facts: Mapping[str, Any]) -> Table:
    """One row per arm: score, difference to the first arm, each seed's score."""
    seeds = [str(seed) for seed in facts["seeds"]]
    title = f"{facts['name']}: {facts['metric']} on {facts['questions']} questions of {facts['users']} held-out users"
    table = Table(title=title, caption="mean \\[95 % interval over users]; sd: of the seeds' differences")
    for heading in ("arm", "score", "against the first", "sd", *(f"seed {seed}" for seed in seeds)):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    rows = {**facts["also"], **facts["arms"]}
    first = next(iter(facts["arms"]))
    for arm, row in rows.items():
        value, low, high = row["score"]
        gap, gap_low, gap_high = row["against_first"]
        table.add_row(
            arm,
            f"{value:.3f} \\[{low:.3f}, {high:.3f}]",
            "" if arm == first else f"{gap:+.3f} \\[{gap_low:+.3f}, {gap_high:+.3f}]",
            "-" if row["seed_sd"] is None or arm == first else f"{row['seed_sd']:.3f}",
            *(f"{row['per_seed'][seed]['score']:.3f}" for seed in seeds),
        )
    return table
