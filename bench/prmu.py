"""Quality of PRMU on the embedded world, users held out from everything: each bar met or not, over several seeds.

Run: python bench/prmu.py [--out runs/prmu] [--seeds 1,2,3] [--rl] [key=value ...]

Each seed is one run of the demo recipe's stages up to SFT, and four reward models on the same pairs: PRMU and the
baselines that know no user, the training users only, or the profile as text in the prompt. `launch.py prmu eval`
measures each. `--rl` trains the guided stage with PRMU, without it, and with PRMU asked for another user, and
evaluates the policies on held-out users. A second call goes on where the first one stopped. Writes <out>/prmu.json
(and <out>/prmu_rl.json) and prints it.
"""

from __future__ import annotations

import argparse
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from tagpr_rl.config import Recipe, dump_recipe, load_recipe, recipe_from_dict
from tagpr_rl.paths import RunDir
from tagpr_rl.types import TagprError

DEMO = Path(__file__).resolve().parents[1] / "recipes" / "demo.yaml"
BASELINES = ("generic", "identity", "text")
ARMS = {"prmu": {}, "off": {"beta": 0.0}, "shuffled": {}}
"""Guided stages of --rl: the demo's, without PRMU, and with PRMU asked for another user."""
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


def _seeds(text: str) -> tuple[int, ...]:
    seeds = tuple(int(part) for part in text.split(","))
    if len(set(seeds)) != len(seeds):
        raise argparse.ArgumentTypeError(f"a seed stands twice in {text!r}")
    return seeds


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/prmu"))
    parser.add_argument("--seeds", type=_seeds, default=(1, 2, 3))
    parser.add_argument("--world-seed", type=int, default=41)
    parser.add_argument("--held-out-users", type=int, default=250)
    parser.add_argument("--rl", action="store_true", help="the guided stage with PRMU, without, and for another user")
    parser.add_argument("--until", help="stop each run after this stage, and measure nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    # Ray's workers take this path over, and verl looks for a package `trl`: trl.py beside this file is not it.
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    console = Console(width=None if sys.stdout.isatty() else 180)
    demo = load_recipe(DEMO, tuple(args.overrides))
    options = {"world_seed": args.world_seed, "held_out_users": args.held_out_users}
    recipes = {seed: derive(demo, out=args.out, seed=seed, rl=args.rl, **options) for seed in args.seeds}
    from tagpr_rl.stages.pipeline import run_pipeline  # after the cheap checks

    for seed, recipe in recipes.items():
        console.rule(f"seed {seed}")
        run_pipeline(recipe, RunDir(recipe.out / recipe.name), until=args.until, console=console)


if __name__ == "__main__":
    try:
        main()
    except TagprError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
