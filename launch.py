"""The command line. `launch.py --help` lists the commands; the larger ones live in modules of their own."""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tagpr_rl.cli import compare as compare_cli
from tagpr_rl.cli import data as lamp_commands
from tagpr_rl.cli import faithful as faithful_cli
from tagpr_rl.cli import prmu as prmu_cli
from tagpr_rl.cli import replay
from tagpr_rl.cli import sweep as sweep_cli
from tagpr_rl.cli import wandb_view as view_cli
from tagpr_rl.config import GrpoStage, Recipe, SftStage, load_recipe
from tagpr_rl.deploy import render as rendering
from tagpr_rl.plan import show as planning
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import needed_for, upstream
from tagpr_rl.run.mirror import Mirror, is_url, mirror_of
from tagpr_rl.run.resume import exclusive, resume_point
from tagpr_rl.run.state import read_resolved, require_unchanged, run_status
from tagpr_rl.types import TagprError

_FILE_ERRORS = {
    errno.ENOSPC: "no space is left; free some or choose another folder with out=<folder>",
    errno.EDQUOT: "the disk quota is used up; free some or choose another folder with out=<folder>",
    errno.EACCES: "no permission; choose a folder you may write with out=<folder>",
    errno.EPERM: "no permission; choose a folder you may write with out=<folder>",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another folder with out=<folder>",
    errno.EEXIST: "a file stands where a folder is needed; choose another folder with out=<folder>",
    errno.EROFS: "the file system is read-only; choose another folder with out=<folder>",
}


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="launch.py", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="make every stage that is not done; print the results")
    _recipe_arguments(run)
    run.add_argument("--fresh", action="store_true", help="delete the run's folder first")
    run.add_argument("--dry-run", action="store_true", help="the same as `plan`")
    run.add_argument("--until", metavar="STAGE", help="stop after this stage")

    resume = commands.add_parser("resume", help="go on with an interrupted run, mid-stage or between stages")
    resume.add_argument("target", metavar="RUN", help="a run's folder, or its URL (s3://bucket/prefix/name)")
    resume.add_argument("--until", metavar="STAGE", help="stop after this stage")
    resume.add_argument("--out", type=Path, metavar="FOLDER", help="with a URL: the local folder of runs")

    export = commands.add_parser("export", help="write a finished stage's model as a Hugging Face folder")
    export.add_argument("target", metavar="RUN", type=Path, help="a run's folder")
    export.add_argument("--stage", required=True, help="a model, sft or grpo stage")
    export.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    export.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUN/export/STAGE-DTYPE")

    _recipe_arguments(commands.add_parser("plan", help="stages, state, batch arithmetic, verl overrides; runs nothing"))

    walk = commands.add_parser("walk", help="print all nine hops of one record")
    _recipe_arguments(walk)
    walk.add_argument("--record", type=int, default=0, metavar="N", help="which record of the data, from 0")
    walk.add_argument("--live", action="store_true", help="let the run's trained model answer (needs the full install)")

    for name, what in (
        ("status", "which stages are done"),
        ("report", "write report.json and report.html again"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("target", metavar="RUN_OR_RECIPE", type=Path, help="a run's folder or a recipe")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="recipe overrides (recipe only)")
    _chains_commands(commands)
    for module in (prmu_cli, compare_cli, sweep_cli, faithful_cli, replay, view_cli):
        module.add_commands(commands)
    _cluster_commands(commands)
    lamp_commands.add_data(commands)
    lamp_commands.add_eval(commands)
    return top


def _chains_commands(commands: Any) -> None:
    below = commands.add_parser("chains", help="make, inspect and publish tagged chains; discover tags")
    what = below.add_subparsers(dest="what", required=True)
    run = what.add_parser("run", help="make the chains stage and what it needs, nothing else")
    _recipe_arguments(run)
    inspect = what.add_parser("inspect", help="counts, and some chains coloured by tag")
    card = what.add_parser("card", help="write a Hugging Face data set with its data card")
    discover = what.add_parser("discover", help="propose a tag schema from freely labelled chains")
    for command in (inspect, card, discover):
        command.add_argument("target", metavar="RUN", type=Path, help="a run's folder")
    for command in (run, inspect, card, discover):
        command.add_argument("--stage", help="which chains stage, where the recipe has several")
    inspect.add_argument("--reason", metavar="R", help="chains rejected for this reason, for example WRONG_ANSWER")
    inspect.add_argument("--task", metavar="T", help="only of this task, for example LaMP_2")
    inspect.add_argument("--n", type=_count, default=5, metavar="N", help="how many (default 5)")
    discover.add_argument("--sample", type=_count, default=300, metavar="N", help="chains to label (default 300)")
    discover.add_argument(
        "--tags", type=_count, metavar="N", help="number of tags; default: as the steps separate best"
    )
    for command, default in ((card, "RUN/export/STAGE-dataset"), (discover, "RUN/export/STAGE-tags")):
        command.add_argument("--out", type=Path, metavar="FOLDER", help=f"default: {default}")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _cluster_commands(commands: Any) -> None:
    render = commands.add_parser("render", help="files for a cluster from the recipe's platform and cluster blocks")
    _recipe_arguments(render)
    render.add_argument("--target", required=True, choices=tuple(rendering.FILES))
    render.add_argument("--out", type=Path, metavar="DIR", help="write the files there instead of printing them")

    submit = commands.add_parser("submit", help="run the recipe on a Ray cluster; prints the job's id, then its output")
    _recipe_arguments(submit)
    submit.add_argument("--no-follow", action="store_true", help="return once the job is submitted")
    submit.add_argument("--pass-env", action="store_true", help="send the values of cluster.env with the job")

    jobs = commands.add_parser("jobs", help="status, output or end of a submitted job")
    jobs.add_argument("what", choices=("status", "logs", "stop"))
    jobs.add_argument("job", metavar="ID", help="as `submit` printed it")
    jobs.add_argument("--follow", action="store_true", help="logs: until the job ends")
    for command in (submit, jobs):
        command.add_argument("--address", required=True, metavar="URL", help="for example http://127.0.0.1:8265")


def _recipe_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", type=Path, metavar="RECIPE", help="a YAML file, for example recipes/demo.yaml")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.limit=100")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. `key=value` may stand before or after options; exits with 2 on a mistake."""
    grammar = parser()
    arguments, rest = grammar.parse_known_args(argv)
    unknown = [item for item in rest if item.startswith("-") or "=" not in item]
    if unknown:
        grammar.error(f"unknown arguments: {' '.join(unknown)} (overrides have the form key=value)")
    if rest and not hasattr(arguments, "overrides"):
        grammar.error(f"`{arguments.command}` takes the run's own recipe, without overrides: {' '.join(rest)}")
    arguments.overrides = [*getattr(arguments, "overrides", ()), *rest]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 (a submitted job failed), 2 (a mistake, explained), 130."""
    arguments = parse(argv)
    try:
        return _COMMANDS[arguments.command](arguments, Console())
    except TagprError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # a full disk is met while writing: no file name
        if error.errno not in _FILE_ERRORS or (error.filename is None and not full):
            raise
        name = error.filename or "the run's folder"
        print(f"error: cannot use {name}: {_FILE_ERRORS[error.errno]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130


def run_dir(recipe: Recipe) -> RunDir:
    """`<out>/<name>` of a recipe."""
    return RunDir(recipe.out / recipe.name)


def _load(arguments: argparse.Namespace) -> Recipe:
    return load_recipe(arguments.recipe, tuple(arguments.overrides))


def _run(arguments: argparse.Namespace, console: Console) -> int:
    if arguments.dry_run:
        return _plan(arguments, console)
    recipe = _load(arguments)
    _check_until(recipe, arguments.until)
    _require_fit(recipe)
    run = run_dir(recipe)
    if arguments.fresh:
        remove_run(run)
        if (mirror := mirror_of(recipe)) is not None:
            mirror.remove()
    require_unchanged(recipe, run)
    run.root.mkdir(parents=True, exist_ok=True)
    _needs("tagpr_rl.stages.pipeline").run_pipeline(recipe, run, until=arguments.until)
    return 0


def _require_fit(recipe: Recipe) -> None:
    """TagprError with everything that `plan` finds in the way of running the recipe on its devices."""
    found = planning.problems(recipe)
    if found:
        raise TagprError(
            "the recipe does not fit its devices:\n  "
            + "\n  ".join(found)
            + "\n`launch.py plan` shows the arithmetic; "
            "budget.device=null leaves memory unchecked"
        )


def _check_until(recipe: Recipe, until: str | None) -> None:
    if until is not None and until not in recipe.stages:
        raise TagprError(f"--until {until}: no such stage; the stages are {', '.join(recipe.stages)}")


def _resume(arguments: argparse.Namespace, console: Console) -> int:
    if is_url(arguments.target):
        mirror = Mirror(arguments.target)
        recipe = mirror.recipe()
        if arguments.out is not None:
            recipe = recipe.model_copy(update={"out": arguments.out})
        run = run_dir(recipe)
        with exclusive(run):
            for line in mirror.pull(recipe, run):
                console.print(f"from {mirror.url}: {line}", highlight=False, soft_wrap=True)
    elif arguments.out is not None:
        raise TagprError(f"--out {arguments.out} goes with a URL; {arguments.target} is worked on where it is")
    elif not Path(arguments.target).is_dir():
        raise TagprError(f"{arguments.target} is no run's folder; `resume` takes one, and `run` takes a recipe")
    else:
        run = RunDir(Path(arguments.target))
        recipe = read_resolved(run)
    _check_until(recipe, arguments.until)
    point = resume_point(recipe, run)
    console.print(f"run {run.root}: {point.describe()}", highlight=False, soft_wrap=True, markup=False)
    if point.stage is None and recipe.mirror is None:
        return 0
    _needs("tagpr_rl.stages.pipeline").run_pipeline(recipe, run, until=arguments.until)
    left = [name for name, state in run_status(recipe, run, until=arguments.until).items() if state.status != "done"]
    assert not left, f"the pipeline ended with unfinished stages: {left}"
    return 0


def _export(arguments: argparse.Namespace, console: Console) -> int:
    recipe, run = find_run(arguments.target, ())
    if not arguments.target.is_dir():
        raise TagprError(f"{arguments.target} is no run's folder")
    export = _needs("tagpr_rl.studies.export").export
    folder = export(recipe, run, arguments.stage, dtype=arguments.dtype, out=arguments.out)
    console.print(str(folder), soft_wrap=True, highlight=False, markup=False)
    return 0


def _plan(arguments: argparse.Namespace, console: Console) -> int:
    recipe = _load(arguments)
    planning.print_plan(recipe, run_dir(recipe), console, verl_overrides)
    return 0


def _walk(arguments: argparse.Namespace, console: Console) -> int:
    recipe = _load(arguments)
    respond = None
    if arguments.live:
        respond = _needs("tagpr_rl.backend.rollout.generate").LiveModel(recipe, run_dir(recipe))
    importlib.import_module("tagpr_rl.cli.walk").walk(recipe, arguments.record, respond=respond, console=console)
    return 0


def _status(arguments: argparse.Namespace, console: Console) -> int:
    recipe, run = find_run(arguments.target, arguments.overrides)
    planning.print_status(recipe, run, console)
    return 0


def _report(arguments: argparse.Namespace, console: Console) -> int:
    _, run = find_run(arguments.target, arguments.overrides)
    if not run.resolved.is_file():
        raise TagprError(f"run {run.root}: nothing was run there; make it with `launch.py run`")
    report = importlib.import_module("tagpr_rl.report")
    # The recipe that was run, not the file as it is now.
    page = report.build_report(run, read_resolved(run))
    console.print(report.summary_table(json.loads(run.report_json.read_text(encoding="utf-8"))))
    console.print(str(page), soft_wrap=True, highlight=False, markup=False)
    return 0


def _chains(arguments: argparse.Namespace, console: Console) -> int:
    commands = importlib.import_module("tagpr_rl.cli.chains")
    if arguments.what == "run":
        recipe = _load(arguments)
        only = needed_for(recipe, commands.chains_stage(recipe, arguments.stage))
        run = run_dir(recipe)
        require_unchanged(recipe, run)
        run.root.mkdir(parents=True, exist_ok=True)
        _needs("tagpr_rl.stages.pipeline").run_pipeline(recipe, run, only=only)
        return 0
    options = {key: value for key, value in vars(arguments).items() if key not in ("command", "what", "target")}
    del options["overrides"]
    if arguments.what == "inspect":
        commands.inspect(arguments.target, console, **options)
        return 0
    if arguments.what == "card":
        path = commands.card(arguments.target, **options)
    else:
        path = commands.discover_tags(arguments.target, console, **options)
    console.print(str(path), soft_wrap=True, highlight=False, markup=False)
    return 0


def _render(arguments: argparse.Namespace, console: Console) -> int:
    recipe = _load(arguments)
    files = rendering.render(recipe, arguments.target, arguments.recipe, arguments.overrides)
    if arguments.out is None:
        sys.stdout.write(rendering.as_text(files))
        return 0
    for path in rendering.write_files(arguments.out, files):
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)
    return 0


def _submit(arguments: argparse.Namespace, console: Console) -> int:
    recipe = _load(arguments)
    _require_fit(recipe)
    jobs = _needs("tagpr_rl.backend.session.jobs")
    succeeded = jobs.submit_and_follow(
        recipe, arguments.recipe, arguments.overrides, arguments.address,
        pass_env=arguments.pass_env, following=not arguments.no_follow,
    )  # fmt: skip
    return 0 if succeeded else 1


def _jobs(arguments: argparse.Namespace, console: Console) -> int:
    jobs = _needs("tagpr_rl.backend.session.jobs")
    return 0 if jobs.manage(arguments.what, arguments.job, arguments.address, following=arguments.follow) else 1


_COMMANDS = {
    "run": _run, "resume": _resume, "plan": _plan, "walk": _walk, "status": _status, "report": _report,
    "export": _export, "chains": _chains, "render": _render, "submit": _submit, "jobs": _jobs,
    "data": lamp_commands.run_data, "eval": lamp_commands.run_eval, "prmu": prmu_cli.run_command,
    "compare": compare_cli.run_command, "replay": replay.run_command, "wandb-view": view_cli.run_command,
    **sweep_cli.COMMANDS, **faithful_cli.COMMANDS,
}  # fmt: skip


def verl_overrides(recipe: Recipe, run: RunDir, name: str) -> Sequence[str]:
    """The verl overrides of an SFT or GRPO stage as Hydra's `key=value`; none for other kinds."""
    stage = recipe.stages[name]
    if not isinstance(stage, SftStage | GrpoStage):
        return ()
    keys = importlib.import_module("tagpr_rl.backend.trainer.overrides")
    own = stage_dir(recipe, run, name)
    source = own  # an SFT stage writes its own rows; GRPO reads the prompts stage's
    if isinstance(stage, GrpoStage):
        prompts = next(other for other in upstream(recipe, name) if recipe.stages[other].kind == "prompts")
        source = stage_dir(recipe, run, prompts)
    paths = keys.StagePaths(
        model=stage_dir(recipe, run, stage.init).hf.absolute(),
        train=(source.root / "train.parquet").absolute(),
        checkpoints=own.checkpoints.absolute(),
        rollouts=own.rollouts.absolute(),
    )
    build = keys.grpo_overrides if isinstance(stage, GrpoStage) else keys.sft_overrides
    found: list[str] = keys.as_hydra(build(recipe, name, paths))
    return found


def find_run(target: Path, overrides: Sequence[str]) -> tuple[Recipe, RunDir]:
    """The recipe and folder meant by a run's folder or a recipe file. Raises TagprError for neither."""
    if not target.is_dir():
        recipe = load_recipe(target, tuple(overrides))
        return recipe, run_dir(recipe)
    run = RunDir(target)
    if overrides:
        raise TagprError(f"{target} is a run's folder, whose recipe is fixed; overrides go with a recipe file")
    return read_resolved(run), run


def remove_run(run: RunDir) -> None:
    """Delete a run's folder. Refuses (TagprError) a folder that is not one."""
    if not run.root.exists():
        return
    if not run.resolved.is_file() and any(path != run.lock for path in run.root.iterdir()):
        raise TagprError(
            f"--fresh: {run.root} has no {run.resolved.name}, so it is not a run's folder; remove it by hand"
        )
    with exclusive(run):
        shutil.rmtree(run.root)


def _needs(module: str) -> Any:
    """Import a module of the full install; a missing package becomes one clear message."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tagpr_rl"):
            raise
        raise TagprError(f"the package '{error.name}' is not installed; `make install` installs everything") from None


if __name__ == "__main__":
    sys.exit(main())
