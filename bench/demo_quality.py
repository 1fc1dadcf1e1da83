"""Quality of the demo on users held out from training and tuning: SFT seeds x RL seeds, each bar met or not.

Run: python bench/demo_quality.py [--out runs/quality] [--sft-seeds 1,2,3] [--rl-seeds 1,2] [key=value ...]

Each SFT seed is one run of the demo recipe with a branch of its GRPO stages per RL seed. `key=value` changes the
demo recipe before that. A second call goes on where the first one stopped. Writes <out>/quality.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import shared
from rich.console import Console
from rich.table import Table

from tagpr_rl.config import Recipe, dump_recipe, load_recipe, recipe_from_dict
from tagpr_rl.eval.metrics import mean_over_tasks, paired_difference, task_mean
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.types import TagprError

DEMO = Path(__file__).resolve().parents[1] / "recipes" / "demo.yaml"
ROLES = ("base", "sft", "guided", "final", "shuffled", "empty")
"""`final` is the exploratory stage; the controls ask the last RL seed's final model."""
COMPARISONS = (
    ("sft", "base"), ("guided", "sft"), ("final", "guided"), ("final", "sft"), ("final", "blind"),
    ("shuffled", "blind"), ("empty", "blind"),
)  # fmt: skip
CONTROL_MARGIN = 0.05
"""How far above the blind ceiling a control may be, and the final model (its interval) must be."""
MIN_QUESTIONS = 2000

Scores = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SeedRun:
    """One SFT seed's finished run: every question's task score by label."""

    sft_seed: int
    rl_seeds: tuple[int, ...]
    scores: Mapping[str, Scores]
    """base, sft, guided_r<seed>, explore_r<seed>, shuffled, empty -> question key -> score, [0, 1]."""
    users: Mapping[str, str]
    tasks: Mapping[str, str]
    bounds: Mapping[str, Mapping[str, float]]
    """blind and oracle -> task (and "mean") -> ceiling."""
    seconds: Mapping[str, float]
    """Stage -> wall seconds, from its manifest."""

    def of_role(self, role: str, rl_seed: int | None = None) -> Scores:
        """Scores of a role: of one RL seed, or averaged over them. `blind` is the task's ceiling everywhere."""
        if role == "blind":
            return {key: self.bounds["blind"][task] for key, task in self.tasks.items()}
        stage = {"guided": "guided", "final": "explore"}.get(role)
        if stage is None:
            return self.scores[role]
        seeds = self.rl_seeds if rl_seed is None else (rl_seed,)
        return average([self.scores[f"{stage}_r{seed}"] for seed in seeds])


def average(runs: Sequence[Scores]) -> dict[str, float]:
    """Each question's mean score over runs. TagprError where the runs answered different questions."""
    for other in runs[1:]:
        if other.keys() != runs[0].keys():
            odd = sorted(other.keys() ^ runs[0].keys())
            raise TagprError(
                f"{len(odd)} questions (first {odd[0]!r}) are not in every run; all runs need the same world: "
                "use another --out or delete this one"
            )
    return {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}


def derive(
    demo: Recipe, *, out: Path, sft_seed: int, rl_seeds: Sequence[int], world_seed: int, held_out_users: int
) -> Recipe:
    """The demo recipe for one SFT seed, with a guided and an exploratory stage per RL seed and one evaluation.

    The evaluation asks every held-out question; intermediate evaluations are dropped. TagprError where the demo
    recipe lacks a stage that the bars speak of, reads files, or was tuned on this world.
    """
    raw = dump_recipe(demo)
    stages: dict[str, dict[str, Any]] = raw["stages"]
    missing = {"base", "sft", "guided", "explore"} - stages.keys()
    if missing:
        raise TagprError(f"{DEMO.name} has no stage {', '.join(sorted(missing))}, which this benchmark compares")
    if raw["data"]["lamp_dir"] is not None:
        raise TagprError("data.lamp_dir is set; this benchmark needs the embedded world, whose ceilings are known")
    if raw["data"]["world"]["seed"] == world_seed:
        raise TagprError(f"--world-seed {world_seed} is the demo's own, whose users it was tuned on; take another")
    raw |= {"name": f"sft{sft_seed}", "out": str(out)}
    raw["data"]["limit"] = None
    raw["data"]["world"] |= {"seed": world_seed, "held_out_users": held_out_users}
    raw["model"]["tiny"]["seed"] = sft_seed
    derived = {
        name: {**block, "seed": sft_seed} for name, block in stages.items() if block["kind"] not in ("grpo", "evaluate")
    }
    grpo = {name: block for name, block in stages.items() if block["kind"] == "grpo"}
    for seed in rl_seeds:
        for name, block in grpo.items():
            init = f"{block['init']}_r{seed}" if block["init"] in grpo else block["init"]
            derived[f"{name}_r{seed}"] = {**deepcopy(block), "seed": seed, "init": init}
    requested = [block for block in stages.values() if block["kind"] == "evaluate"]
    derived["eval"] = {
        **(requested[-1] if requested else {"kind": "evaluate"}),
        "models": ["base", "sft", *(f"{name}_r{seed}" for seed in rl_seeds for name in ("guided", "explore"))],
        "controls": ["shuffled", "empty"],
        "questions": None,
        "control_questions": None,
    }
    return recipe_from_dict({**raw, "stages": derived}, source=f"{DEMO.name} for SFT seed {sft_seed}")


def read_run(recipe: Recipe, sft_seed: int, rl_seeds: Sequence[int]) -> SeedRun:
    """Scores, ceilings and times of a finished run."""
    run = RunDir(recipe.out / recipe.name)
    actual = _read(stage_dir(recipe, run, "eval").root / "eval.json")
    results = {**actual["models"], **actual["controls"]}
    questions = results["base"]["questions"]
    return SeedRun(
        sft_seed=sft_seed,
        rl_seeds=tuple(rl_seeds),
        scores={label: {q["key"]: q["score"] for q in result["questions"]} for label, result in results.items()},
        users={q["key"]: q["user_id"] for q in questions},
        tasks={q["key"]: q["task"] for q in questions},
        bounds=_read(stage_dir(recipe, run, "data").root / "data.json")["bounds"],
        seconds={name: _read(stage_dir(recipe, run, name).manifest)["seconds"] for name in recipe.stages},
    )


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def compare(runs: Sequence[SeedRun]) -> dict[str, Any]:
    """Means and paired differences over the given runs, each question averaged over them first.

    {"means": {role: [mean, low, high]}, "ceilings": {"blind": x, "oracle": x},
    "differences": {"a-b": [mean, low, high]}}. Intervals: 95 %, over users, of these very trained models; the
    spread between seeds is in `spread`.
    """
    users, tasks = runs[0].users, runs[0].tasks
    scores = {role: average([run.of_role(role) for run in runs]) for role in (*ROLES, "blind")}
    keys = sorted(tasks)
    for role in ROLES:
        if scores[role].keys() != tasks.keys():
            raise TagprError(f"{role}: {len(scores[role])} of {len(tasks)} questions were asked; it needs all of them")
    order = ([tasks[key] for key in keys], [users[key] for key in keys])
    return {
        "means": {role: list(task_mean([scores[role][key] for key in keys], *order)) for role in ROLES},
        "ceilings": {name: runs[0].bounds[name]["mean"] for name in ("blind", "oracle")},
        "differences": {
            f"{a}-{b}": list(paired_difference(scores[a], scores[b], users, tasks=tasks)) for a, b in COMPARISONS
        },
    }


def spread(runs: Sequence[SeedRun]) -> dict[str, Any]:
    """Every run's difference (one per SFT seed where no RL seed is involved), their mean and sample deviation."""
    actual = {}
    for a, b in COMPARISONS:
        by_rl_seed = {"guided", "final"} & {a, b}
        rows: list[dict[str, Any]] = []
        for run in runs:
            for seed in run.rl_seeds if by_rl_seed else (None,):
                keys = sorted(run.tasks)
                one, other = run.of_role(a, seed), run.of_role(b, seed)
                value = mean_over_tasks([one[key] - other[key] for key in keys], [run.tasks[key] for key in keys])
                rows.append({"sft_seed": run.sft_seed, "rl_seed": seed, "difference": value})
        values = [row["difference"] for row in rows]
        actual[f"{a}-{b}"] = {
            "runs": rows,
            "mean": statistics.fmean(values),
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "above_zero": sum(value > 0 for value in values),
        }
    return actual


def effect(interval: Sequence[float]) -> str:
    """What an interval says of a contribution."""
    _, low, high = interval
    return "adds" if low > 0 else "takes away" if high < 0 else "no clear effect"


def bars(pooled: Mapping[str, Any], spreads: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each bar: {"bar", "met" (None = to be shown, not passed), "figures"}."""
    mean = {role: values[0] for role, values in pooled["means"].items()}
    differences, blind, oracle = pooled["differences"], pooled["ceilings"]["blind"], pooled["ceilings"]["oracle"]
    runs = {name: f"{item['above_zero']} of {len(item['runs'])} runs above 0" for name, item in spreads.items()}
    share = (mean["final"] - blind) / (oracle - blind) if oracle > blind else float("nan")
    rows: list[tuple[str, bool | None, str]] = [
        (
            "3 SFT seeds x 2 RL seeds, 2,000 questions or more, users not tuned on",
            len(protocol["sft_seeds"]) >= 3
            and len(protocol["rl_seeds"]) >= 2
            and protocol["questions"] >= MIN_QUESTIONS
            and protocol["world_seed"] != protocol["tuning_world_seed"],
            f"{len(protocol['sft_seeds'])} x {len(protocol['rl_seeds'])}, {protocol['questions']} questions of "
            f"{protocol['users']} users, world {protocol['world_seed']}, tuned on {protocol['tuning_world_seed']}",
        ),
        (
            "base < SFT < final",
            mean["base"] < mean["sft"] < mean["final"],
            f"{mean['base']:.3f}, {mean['sft']:.3f}, {mean['final']:.3f}; sft-base: {runs['sft-base']}",
        ),
        (
            "final - SFT clear of zero",
            differences["final-sft"][1] > 0,
            f"{signed(differences['final-sft'])}; {runs['final-sft']}",
        ),
    ]
    for label, name in (("guided", "guided-sft"), ("exploratory", "final-guided")):
        text = f"{effect(differences[name])}: {signed(differences[name])}; {runs[name]}"
        rows.append((f"contribution of the {label} stage, shown whatever it is", None, text))
    rows.append(
        (
            f"final far above the blind ceiling (interval above {CONTROL_MARGIN:.2f})",
            differences["final-blind"][1] > CONTROL_MARGIN,
            f"{signed(differences['final-blind'])}; {share:.0%} of the way from blind {blind:.3f} to "
            f"oracle {oracle:.3f}; {runs['final-blind']}",
        )
    )
    for control in ("shuffled", "empty"):
        difference = differences[f"{control}-blind"]
        rows.append(
            (
                # Below it is no leak: the model follows a history that is not the user's.
                f"{control} profiles: score falls to the blind ceiling (at most {CONTROL_MARGIN:.2f} above it)",
                difference[0] <= CONTROL_MARGIN and mean[control] < mean["final"],
                f"{mean[control]:.3f} against blind {blind:.3f} and final {mean['final']:.3f}: {signed(difference)}",
            )
        )
    return [{"bar": bar, "met": met, "figures": figures} for bar, met, figures in rows]


def signed(interval: Sequence[float]) -> str:
    """`+0.012 [-0.003, +0.027]`."""
    value, low, high = interval
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def quality(runs: Sequence[SeedRun], protocol: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that quality.json holds."""
    for run in runs[1:]:
        if (run.users, run.tasks, run.bounds) != (runs[0].users, runs[0].tasks, runs[0].bounds):
            raise TagprError(
                f"SFT seeds {runs[0].sft_seed} and {run.sft_seed} were evaluated on different questions; all runs "
                "need the same world: use another --out"
            )
    protocol = {**protocol, "questions": len(runs[0].tasks), "users": len(set(runs[0].users.values()))}
    pooled, spreads = compare(runs), spread(runs)
    return {
        "protocol": protocol,
        "environment": dict(environment),
        "bars": bars(pooled, spreads, protocol),
        "pooled": pooled,
        "per_run": spreads,
        "per_sft_seed": {str(run.sft_seed): compare([run]) for run in runs},
        "seconds": {str(run.sft_seed): {**run.seconds, "all": sum(run.seconds.values())} for run in runs},
    }


def show(facts: Mapping[str, Any], console: Console) -> None:
    """Print quality.json as tables."""
    seeds = facts["per_sft_seed"]
    columns = {**{f"SFT seed {seed}": found for seed, found in seeds.items()}, "pooled": facts["pooled"]}
    table = Table(title="Mean task score on held-out users (pooled: 95 % interval over users)")
    for heading in ("", *columns):
        table.add_column(heading, justify="left" if not heading else "right")
    for role in ROLES:
        value, low, high = facts["pooled"]["means"][role]
        cells = [f"{seeds[seed]['means'][role][0]:.3f}" for seed in seeds]
        table.add_row(role, *cells, f"{value:.3f} [{low:.3f}, {high:.3f}]")
    for name in ("blind", "oracle"):
        table.add_row(f"{name} ceiling", *(f"{actual['ceilings'][name]:.3f}" for actual in columns.values()))
    console.print(table)
    table = Table(title="Paired differences, 95 % intervals over users; last columns: over runs")
    for heading in ("", *columns, "runs", "sd"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, item in facts["per_run"].items():
        values = " ".join(f"{row['difference']:+.3f}" for row in item["runs"])
        deviation = "-" if item["sd"] is None else f"{item['sd']:.3f}"
        table.add_row(name, *(signed(actual["differences"][name]) for actual in columns.values()), values, deviation)
    console.print(table)
    table = Table("bar", "", "figures", title="Bars")
    words = {True: "[green]met[/green]", False: "[red]NOT MET[/red]", None: "shown"}
    for row in facts["bars"]:
        table.add_row(row["bar"], words[row["met"]], row["figures"].replace("[", r"\["))
    console.print(table)
    table = Table("stage", *(f"SFT seed {seed}, s" for seed in facts["seconds"]), title="Wall time")
    for stage in next(iter(facts["seconds"].values())):
        table.add_row(stage, *(f"{seconds[stage]:.0f}" for seconds in facts["seconds"].values()))
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared.recipe_arguments(parser, "runs/quality")
    parser.add_argument("--sft-seeds", type=shared.seeds, default=(1, 2, 3))
    parser.add_argument("--rl-seeds", type=shared.seeds, default=(1, 2))
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    shared.leave_path()
    console = Console(width=None if sys.stdout.isatty() else 180)
    demo = load_recipe(DEMO, tuple(args.overrides))
    options = {"rl_seeds": args.rl_seeds, "world_seed": args.world_seed, "held_out_users": args.held_out_users}
    recipes = {seed: derive(demo, out=args.out, sft_seed=seed, **options) for seed in args.sft_seeds}
    environment = shared.run_all(recipes, console, "SFT seed")
    runs = [read_run(recipe, seed, args.rl_seeds) for seed, recipe in recipes.items()]
    protocol = {
        "sft_seeds": list(args.sft_seeds),
        "rl_seeds": list(args.rl_seeds),
        "world_seed": args.world_seed,
        "tuning_world_seed": demo.data.world.seed,
        "overrides": list(args.overrides),
    }
    facts = quality(runs, protocol, environment)
    show(facts, console)
    shared.finish(args.out / "quality.json", facts, console)


if __name__ == "__main__":
    shared.exit_with(main)
