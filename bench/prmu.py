"""Quality of PRMU on the embedded world, users held out from everything: each bar met or not, over several seeds.

Run: python bench/prmu.py [--out runs/prmu] [--seeds 1,2,3] [--rl] [key=value ...]

Each seed is one run of the demo recipe's stages up to SFT, and four reward models on the same pairs: PRMU and the
baselines that know no user, the training users only, or the profile as text in the prompt. `tagpr study prmu`
measures each. `--rl` trains the guided stage with PRMU, without it, and with PRMU asked for another user, and
evaluates the policies on held-out users. A second call goes on where the first one stopped. Writes <out>/prmu.json
(and <out>/prmu_rl.json) and prints it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import shared
from rich.console import Console

from tagpr_rl.config import Recipe, dump_recipe, load_recipe, recipe_from_dict
from tagpr_rl.eval.metrics import paired_difference, task_mean
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.types import TagprError

DEMO = Path(__file__).resolve().parents[1] / "recipes" / "demo.yaml"
BASELINES = ("generic", "identity", "text")
ARMS = {"prmu": {}, "off": {"beta": 0.0}, "shuffled": {}}
"""Guided stages of --rl: the demo's, without PRMU, and with PRMU asked for another user."""
LONGER = {"steps": 1800, "policy_samples": 8, "policy_questions": 2000, "slip_fraction": 0.5, "patience": 0}
"""Of PRMU and the baselines, against the demo's: more steps, all of them (256 unseen pairs are too noisy to stop by),
and the policy's own responses among the pairs. The demo has minutes; here PRMU must choose among responses of a policy
that is right four times in five."""
NEEDED = ("data", "model", "prompts", "base", "chains", "sft", "prmu")


def derive(demo: Recipe, *, out: Path, seed: int, world_seed: int, held_out_users: int, rl: bool) -> Recipe:
    """The demo recipe for one seed with the reward models to compare, and the guided stages with `rl`.

    TagprError where the demo recipe lacks a stage, or was tuned on this world.
    """
    raw = dump_recipe(demo)
    stages: dict[str, dict[str, Any]] = raw["stages"]
    missing = [name for name in (*NEEDED, "guided") if name not in stages]
    if missing:
        raise TagprError(f"{DEMO.name} has no stage {', '.join(missing)}, which this benchmark needs")
    if raw["data"]["world"]["seed"] == world_seed:
        raise TagprError(f"--world-seed {world_seed} is the demo's own, whose users it was tuned on; take another")
    raw |= {"name": f"seed{seed}", "out": str(out)}
    raw["data"]["world"] |= {"seed": world_seed, "held_out_users": held_out_users}
    raw["model"]["tiny"]["seed"] = seed
    derived = {name: {**stages[name], "seed": seed} for name in NEEDED}
    derived["prmu"] |= LONGER
    for user in BASELINES:
        derived[f"prmu_{user}"] = {**deepcopy(derived["prmu"]), "user": user}
    if rl:
        for arm, weights in ARMS.items():
            block = {**deepcopy(stages["guided"]), "seed": seed, "init": "sft", "prmu": "prmu"}
            block["weights"] = {**block["weights"], **weights}
            derived[f"guided_{arm}"] = block | ({"prmu_users": "shuffled"} if arm == "shuffled" else {})
        models = ["sft", *(f"guided_{arm}" for arm in ARMS)]
        derived["eval"] = {"kind": "evaluate", "models": models, "controls": []}
    return recipe_from_dict({**raw, "stages": derived}, source=f"{DEMO.name} for seed {seed}")


def read_eval(recipe: Recipe, stage: str) -> dict[str, Any]:
    """What `tagpr study prmu` wrote for a stage."""
    path = RunDir(recipe.out / recipe.name).prmu_eval / f"{stage}.json"
    actual: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return actual


def pooled(values: Sequence[Mapping[str, Sequence[Any]]]) -> list[float]:
    """[mean, low, high] over users, each pair's outcome ([user, win]) averaged over the seeds that have it."""
    wins: dict[str, list[float]] = {}
    users: dict[str, str] = {}
    for run in values:
        for key, (user, win) in run.items():
            wins.setdefault(key, []).append(win)
            users[key] = user
    keys = sorted(wins)
    return list(task_mean([statistics.fmean(wins[k]) for k in keys], ["all"] * len(keys), [users[k] for k in keys]))


def above(one: Sequence[Mapping[str, Sequence[Any]]], other: Sequence[Mapping[str, Sequence[Any]]]) -> list[float]:
    """[mean, low, high] over users of the paired difference in wins, over all seeds."""
    a: dict[str, float] = {}
    b: dict[str, float] = {}
    users: dict[str, str] = {}
    for seed, (mine, reference) in enumerate(zip(one, other, strict=True)):
        for key in mine.keys() & reference.keys():
            a[f"{seed}/{key}"], b[f"{seed}/{key}"] = mine[key][1], reference[key][1]
            users[f"{seed}/{key}"] = mine[key][0]
    return list(paired_difference(a, b, users))


def quality(recipes: Mapping[int, Recipe]) -> dict[str, Any]:
    """Everything that prmu.json holds but the protocol."""
    stages = {"prmu": "attention", **{f"prmu_{user}": user for user in BASELINES}}
    actual = {stage: [read_eval(recipe, stage) for recipe in recipes.values()] for stage in stages}
    won = {stage: [facts["held_out"]["won"] for facts in runs] for stage, runs in actual.items()}
    models: dict[str, Any] = {}
    for stage, runs in actual.items():
        gains: dict[str, list[Any]] = {}
        for index, facts in enumerate(runs):
            gains |= {f"{index}/{key}": row for key, row in facts["best_of_n"]["gains"].items()}
        models[stage] = {
            "user": stages[stage],
            "held_out": pooled(won[stage]),
            "held_out_per_seed": [facts["held_out"]["accuracy"][0] for facts in runs],
            "prmu_above": above(won["prmu"], won[stage]) if stage != "prmu" else None,
            "user_only_own_per_seed": [facts["user_only"]["own"] for facts in runs],
            "user_only_shuffled_per_seed": [facts["user_only"]["shuffled"] for facts in runs],
            "gain_of_best_of_n": list(
                task_mean(
                    [row[0] for row in gains.values()],
                    [row[2] for row in gains.values()],
                    [row[1] for row in gains.values()],
                )
            ),
            "gain_per_seed": [facts["best_of_n"]["rankings"]["prmu"]["gain"] for facts in runs],
            "gain_of_rankings": {
                name: statistics.fmean(facts["best_of_n"]["rankings"][name]["gain"][0] for facts in runs)
                for name in runs[0]["best_of_n"]["rankings"]
            },
            "correlation": [facts["best_of_n"]["correlation"] for facts in runs],
            "policy_pairs_per_seed": [facts["policy"].get("accuracy") for facts in runs],
            "ece_per_seed": [facts["held_out"]["calibration"]["ece"] for facts in runs],
            "by_kind": _mean_of([{k: v["accuracy"][0] for k, v in f["held_out"]["by_kind"].items()} for f in runs]),
            "by_task": _mean_of([{k: v["accuracy"][0] for k, v in f["held_out"]["by_task"].items()} for f in runs]),
            "cold_start": _mean_of([{str(r["items"]): r["accuracy"][0] for r in f["cold_start"]} for f in runs]),
            "probes": [facts["probes"] for facts in runs],
        }
    return {"bars": bars(models, actual["prmu"]), "models": models}


def _mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return {key: statistics.fmean(row[key] for row in rows if key in row) for key in keys}


def bars(models: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each bar: {"bar", "met" (None = to be shown), "figures"}; an accuracy must reach its bar with every seed."""
    prmu = models["prmu"]
    held = prmu["held_out_per_seed"]
    kinds = ", ".join(f"{kind} {value:.3f}" for kind, value in prmu["by_kind"].items())
    shown = f"{spread(prmu['held_out'])}; by seed {', '.join(f'{value:.3f}' for value in held)}; {kinds}"
    rows: list[tuple[str, bool | None, str]] = [
        ("three seeds or more", len(held) >= 3, f"{len(held)} seeds, {runs[0]['held_out']['pairs']} pairs of "
         f"{runs[0]['held_out']['users']} users in the first"),
        ("pairwise accuracy of users never seen >= 0.85", min(held) >= 0.85, shown),
    ]  # fmt: skip
    for name in ("generic", "identity"):
        entry = models[f"prmu_{name}"]
        text = f"{name} {spread(entry['held_out'])}; PRMU above it by {spread(entry['prmu_above'])}"
        rows.append((f"above the {name} baseline, clear of the interval", entry["prmu_above"][1] > 0, text))
    text = f"{spread(models['prmu_text']['held_out'])}; PRMU above it by {spread(models['prmu_text']['prmu_above'])}"
    rows.append(("the user as text in the prompt, shown", None, text))
    own, other = prmu["user_only_own_per_seed"], prmu["user_only_shuffled_per_seed"]
    rows += [
        ("pairs that differ only in the user: own user >= 0.85", min(v[0] for v in own) >= 0.85,
         "; ".join(map(spread, own))),
        ("the same pairs: another user <= 0.55", max(v[0] for v in other) <= 0.55, "; ".join(map(spread, other))),
        (f"best of {runs[0]['best_of_n']['n']}: gain of the task score above 0", prmu["gain_of_best_of_n"][1] > 0,
         f"{spread(prmu['gain_of_best_of_n'])}; " + ", ".join(
             f"{name} {value:+.3f}" for name, value in prmu["gain_of_rankings"].items())),
    ]  # fmt: skip
    return [{"bar": bar, "met": met, "figures": figures} for bar, met, figures in rows]


def spread(interval: Sequence[float]) -> str:
    """`0.912 [0.895, 0.930]`."""
    return f"{interval[0]:.3f} [{interval[1]:.3f}, {interval[2]:.3f}]"


def policies(recipes: Mapping[int, Recipe]) -> dict[str, Any]:
    """Held-out scores of the guided policies, and PRMU against each control, over all seeds."""
    scores: dict[str, dict[str, float]] = {}
    users: dict[str, str] = {}
    tasks: dict[str, str] = {}
    per_seed: dict[str, list[float]] = {}
    for seed, recipe in recipes.items():
        path = stage_dir(recipe, RunDir(recipe.out / recipe.name), "eval").root / "eval.json"
        for name, result in json.loads(path.read_text(encoding="utf-8"))["models"].items():
            per_seed.setdefault(name, []).append(result["score"])
            for question in result["questions"]:
                key = f"{seed}/{question['key']}"
                scores.setdefault(name, {})[key] = question["score"]
                users[key], tasks[key] = question["user_id"], question["task"]
    keys = sorted(users)
    order = ([tasks[key] for key in keys], [users[key] for key in keys])
    names = list(scores)
    compared = [("guided_prmu", "guided_off"), ("guided_prmu", "guided_shuffled"), *((n, "sft") for n in names[1:])]
    return {
        "scores": {name: list(task_mean([scores[name][key] for key in keys], *order)) for name in names},
        "per_seed": per_seed,
        "differences": {
            f"{a}-{b}": list(paired_difference(scores[a], scores[b], users, tasks=tasks)) for a, b in compared
        },
        "questions": len(keys),
    }


def measure(recipes: Mapping[int, Recipe], console: Console) -> None:
    """`tagpr study prmu` of every reward model that has no figures yet."""
    from tagpr_rl.studies.prmu_eval import prmu_eval

    for recipe in recipes.values():
        run = RunDir(recipe.out / recipe.name)
        for stage in ("prmu", *(f"prmu_{user}" for user in BASELINES)):
            done, made = run.prmu_eval / f"{stage}.json", stage_dir(recipe, run, stage).manifest
            if not done.is_file() or done.stat().st_mtime < made.stat().st_mtime:
                prmu_eval(recipe, run, stage, console=console)
                console.print(f"{recipe.name}: {stage} measured")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared.recipe_arguments(parser, "runs/prmu")
    parser.add_argument("--seeds", type=shared.seeds, default=(1, 2, 3))
    parser.add_argument("--rl", action="store_true", help="the guided stage with PRMU, without, and for another user")
    parser.add_argument("--until", help="stop each run after this stage, and measure nothing")
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    shared.leave_path()
    console = Console(width=None if sys.stdout.isatty() else 180)
    demo = load_recipe(DEMO, tuple(args.overrides))
    options = {"world_seed": args.world_seed, "held_out_users": args.held_out_users}
    recipes = {seed: derive(demo, out=args.out, seed=seed, rl=args.rl, **options) for seed in args.seeds}
    environment = shared.run_all(recipes, console, "seed", args.until)
    if args.until:
        return
    protocol = {"seeds": list(args.seeds), **options, "overrides": args.overrides}
    facts = {"protocol": protocol, "environment": environment}
    if args.rl:
        facts |= policies(recipes)
    else:
        measure(recipes, console)
        facts |= quality(recipes)
    path = args.out / ("prmu_rl.json" if args.rl else "prmu.json")
    console.print_json(json.dumps(facts))
    shared.finish(path, facts, console)


if __name__ == "__main__":
    shared.exit_with(main)
