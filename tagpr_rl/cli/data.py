"""`tagpr data`: LaMP's official files checked, fetched and ranked. No torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from tagpr_rl.cli.arguments import Command, full_install, in_path, out_file, out_folder, say
from tagpr_rl.config.data import PUBLISHED_QUESTIONS
from tagpr_rl.data.check import check_folder
from tagpr_rl.data.check import describe as describe_check
from tagpr_rl.data.download import BASE, addresses, fetch
from tagpr_rl.data.lamp import SPLITS, load_folder
from tagpr_rl.data.split import at_most
from tagpr_rl.data.tasks import TASKS, task_name
from tagpr_rl.files import write_json
from tagpr_rl.prompts.rankings import rankings_path, write_rankings
from tagpr_rl.prompts.retrieve import Retriever, Ties
from tagpr_rl.types import TagprError

commands = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Check, download or rank LaMP's official files."
)


def _check_splits(splits: list[str] | None) -> list[str] | None:
    for position, split in enumerate(splits or ()):
        if split not in SPLITS:
            raise typer.BadParameter(f"'{split}' is not one of 'train', 'dev', 'test'")
        if splits and split in splits[:position]:
            raise typer.BadParameter(f"{split} stands twice")
    return splits


Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Holds <task>/<split>_questions.json.", callback=in_path)]
Tasks = Annotated[list[str] | None, typer.Option("--tasks", metavar="TASK", help="Default: all there are.")]
Splits = Annotated[
    list[str] | None, typer.Option("--splits", metavar="SPLIT", help="Of train, dev, test.", callback=_check_splits)
]


@commands.command(cls=Command)
def check(
    folder: Folder,
    tasks: Tasks = None,
    splits: Splits = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the findings there, too.", callback=out_file)
    ] = None,
) -> None:
    """Count records, hash files and list every defect of the official files in a folder.

    Exits with 1 if a record was refused.

    Example: tagpr data check data/lamp --tasks LaMP_2 LaMP_3
    """
    checks = []
    for result in check_folder(folder, _names(tasks) or TASKS, splits or SPLITS):
        checks.append(result)
        for line in describe_check(result):
            say(line)
    if json is not None:
        rows = [{**asdict(result), "setting": result.setting} for result in checks]
        write_json(json, [{**row, "questions": str(row["questions"]), "outputs": str(row["outputs"])} for row in rows])
    if not all(result.fine for result in checks):
        raise typer.Exit(1)


@commands.command(cls=Command)
def download(
    folder: Folder,
    tasks: Tasks = None,
    splits: Splits = None,
    setting: Annotated[Literal["user", "time"], typer.Option(help="Which of the benchmark's two splits.")] = "user",
    base: Annotated[str, typer.Option(metavar="URL", help="Where the files are fetched from.")] = BASE,
) -> None:
    """Fetch official files into a folder; goes on with what is there. LaMP-6 is not public and left out.

    Example: tagpr data download data/lamp --setting time
    """
    for task in _names(tasks) or [task for task in TASKS if task != "LaMP_6"]:
        for split in splits or SPLITS:
            for url, path in addresses(folder, task, split, setting, base):
                file = fetch(url, path, task, split, say=say)
                note = ""
                if setting == "time" and task in PUBLISHED_QUESTIONS:
                    published = PUBLISHED_QUESTIONS[task][SPLITS.index(split)]
                    note = "" if file.n_records == published else f" (published: {published})"
                say(f"{file.how}: {file.path}, {file.n_bytes} bytes, {file.n_records} records{note}")


@commands.command(cls=Command)
def rank(
    folder: Folder,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Gets <task>.json.", callback=out_folder)],
    tasks: Tasks = None,
    splits: Splits = None,
    method: Annotated[Literal["bm25", "dense", "recency", "random"], typer.Option()] = "bm25",
    ties: Annotated[Ties, typer.Option(help="Order of items with equal scores.")] = "official",
    encoder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="dense: a Hugging Face encoder.", callback=in_path)
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="dense: computed embeddings.", callback=out_folder)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of --method random.")] = 0,
    skip_defective: Annotated[int, typer.Option(min=0, help="Most defective records of a task left out.")] = 0,
) -> None:
    """Rank every user's items for every question, and write upstream's rankings files: {question id: [item ids]}.

    Example: tagpr data rank data/lamp --out rankings --splits dev
    """
    chosen = splits or ["dev"]
    if len(chosen) > 1:
        raise TagprError("data rank: one split at a time; question ids repeat across splits")
    if (method == "dense") != (encoder is not None):
        raise TagprError("data rank: --encoder goes with --method dense")
    similarity = None
    if encoder is not None:
        similarity = (
            full_install("tagpr_rl.model.encode").Encoder(encoder).store(cache or out / "embeddings").similarity
        )
    whole_profile = 1 << 30
    retriever = Retriever(whole_profile, method, seed, ties, similarity)
    found = _names(tasks) or [task for task in TASKS if (folder / task).is_dir()]
    if not found:
        raise TagprError(f"data rank: {folder} holds no folder of a task ({', '.join(TASKS)}); name the one that does")
    for task in found:
        faults: list[str] = []
        query = method in ("bm25", "dense")
        records = load_folder(folder, [task], chosen[0], query=query, on_fault=faults.append)
        for fault in at_most(faults, skip_defective, str(folder)):
            say(f"left out: {fault}")
        path = rankings_path(out, task)
        say(f"{path}: {write_rankings(path, records, retriever)} questions ranked by {method}")


def _names(tasks: list[str] | None) -> list[str] | None:
    names = [task_name(task) for task in tasks or ()]
    if twice := [name for position, name in enumerate(names) if name in names[:position]]:
        raise TagprError(f"--tasks {twice[0]} stands twice; name each task once")
    return names or None
