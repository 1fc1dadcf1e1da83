"""`tagpr chat`: a finished stage's model answers a typed question as one user of the run's data would want."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console

from tagpr_rl.cli.arguments import RunName, StageName, check_stage, full_install
from tagpr_rl.cli.walk.question import finished_data
from tagpr_rl.config import Recipe, SftStage
from tagpr_rl.config.grpo import GrpoStage
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.prompts.dataset import Dataset
from tagpr_rl.prompts.rows import profile_texts
from tagpr_rl.prompts.tokens import ChatTokenizer
from tagpr_rl.report.page.terminal import Page
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import read_manifest
from tagpr_rl.run.open import open_run
from tagpr_rl.tags.schema import schema_from
from tagpr_rl.types import LampRecord, Prompt, TagprError

SHOWN_ITEMS = 3
Answer = Callable[[Prompt], str]


def command(
    run: RunName,
    stage: StageName = None,
    user: Annotated[str | None, typer.Option(metavar="ID", help="As which user; default: a held-out one.")] = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="Which of the user's tasks, LaMP_3 say.")] = None,
) -> None:
    """Ask a finished stage's model of RUN as one user: it shows the user's history, then the thought and the answer.

    A line is a question: LaMP's whole text, or what takes the place of its article, paper or review. An empty line
    asks the user's own question. Ctrl-D ends. The model answers greedily.

    Example: tagpr chat runs/demo --stage explore
    """
    recipe, folder = open_run(run)
    name = trained_stage(recipe, folder, stage)
    schema = schema_from(recipe.schema_file)
    dataset = Dataset(recipe, schema, finished_data(recipe, folder))
    record = question_of((*dataset.held_out, *dataset.train), user, task)
    page = Page(Console(), schema)
    introduce(page, record, name)
    weights = stage_dir(recipe, folder, name).hf.resolve()
    tokenizer = ChatTokenizer(weights)
    make = dataset.prompt_maker("reasoning", tokenizer)
    session = full_install("tagpr_rl.backend.session.ray_session").ray_session
    engine_class = full_install("tagpr_rl.backend.rollout.generate").Engine
    with session(recipe), engine_class(recipe, weights, count=1) as engine:

        def answer(prompt: Prompt) -> str:
            text: str = engine([tokenizer.encode(tokenizer.render(prompt.messages))], temperature=0.0)[0]
            return text

        talk(page, record, make, answer, lines())


def trained_stage(recipe: Recipe, run: RunDir, wanted: str | None) -> str:
    """The stage that answers: `wanted`, or the last finished one that was trained to think."""
    check_stage(wanted, recipe.stages, "--stage")
    trained = [name for name, stage in recipe.stages.items() if isinstance(stage, GrpoStage | SftStage)]
    done = [name for name in trained if read_manifest(stage_dir(recipe, run, name)) is not None]
    if wanted is not None and wanted not in done:
        raise TagprError(f"--stage {wanted}: no finished sft or grpo stage of {run.root}; there are {done or 'none'}")
    if not done:
        raise TagprError(f"{run.root}: no sft or grpo stage is finished; run the recipe first")
    return wanted or done[-1]


def question_of(records: Sequence[LampRecord], user: str | None, task: str | None) -> LampRecord:
    """The first question of this user and task; None = any."""
    own = [record for record in records if user in (None, record.user_id)]
    if not own:
        some = ", ".join(list(dict.fromkeys(record.user_id for record in records))[:5])
        raise TagprError(f"--user {user}: the run's data have no such user; there are {some}, ...")
    for record in own:
        if task in (None, record.task):
            return record
    tasks = ", ".join(dict.fromkeys(record.task for record in own))
    raise TagprError(f"--task {task}: this user has questions of {tasks}")


def asked(base: LampRecord, line: str) -> LampRecord:
    """The question that a line asks: `base` itself if it is empty, else without a gold.

    A line that is not of the task's form takes the place of what `base` asks about. TagprError if that is not one text
    (LaMP_1 has two candidates).
    """
    if not line.strip():
        return base
    spec = TASKS[base.task]
    whole = replace(base, input=line.strip(), gold=None)
    try:
        spec.query(whole)
    except TagprError:
        if (own := spec.query(base)) not in base.input:
            raise TagprError(f"type the whole question as {base.task} has it: {base.input}") from None
        whole = replace(whole, input=base.input.replace(own, line.strip()))
    return whole


def introduce(page: Page, record: LampRecord, stage: str) -> None:
    """Who asks whom, with some of the user's history."""
    page.say(f"Stage '{stage}' answers as user {record.user_id} would want, in {record.task}.")
    texts = profile_texts(record)
    page.block(f"the history, {min(SHOWN_ITEMS, len(texts))} of {len(texts)} items", "\n".join(texts[:SHOWN_ITEMS]))
    page.block("the user's own question (an empty line asks it)", record.input)


def talk(
    page: Page, base: LampRecord, make: Callable[[LampRecord], Prompt], answer: Answer, questions: Iterator[str]
) -> None:
    """Answer each question with its thought; the user's own one with the gold beside it."""
    for line in questions:
        try:
            record = asked(base, line)
        except TagprError as error:
            page.say(str(error))
            continue
        page.block("thought and answer", page.trace(answer(make(record))))
        if record.gold is not None:
            page.say(f"the user's own answer: {record.gold}")


def lines() -> Iterator[str]:
    """What is typed, until Ctrl-D; a sign to type at a terminal."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line.rstrip("\n")
