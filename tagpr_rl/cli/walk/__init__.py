"""`tagpr walk`: prints the nine hops of one record, from LaMP's file to the report, on any laptop.

The walk calls the functions that the run calls. It needs no torch and no trained model: without a live model the group
of responses is canned, but made from the record itself (chains.teachers.canned).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console

from tagpr_rl.cli.arguments import Overrides, RecipeName, full_install
from tagpr_rl.cli.walk.question import show_prompt, show_record, show_row
from tagpr_rl.cli.walk.response import compare_replies, grpo_stages, parse_replies, replies_to, score_replies
from tagpr_rl.cli.walk.training import publish, report, update
from tagpr_rl.config import Recipe
from tagpr_rl.report.page.terminal import Page
from tagpr_rl.run.layout import RunDir
from tagpr_rl.run.open import open_recipe, planned_run
from tagpr_rl.tags.schema import default_schema, load_schema
from tagpr_rl.types import Prompt

Respond = Callable[[Prompt], list[str]]


def walk(recipe: Recipe, record: int, *, respond: Respond | None = None, console: Console) -> None:
    """Print the nine hops for the training record number `record` (from 0, as in the run's train.parquet).

    If the run of this recipe has made its data, the record comes from there. `respond` gives the group of responses
    to the prompt; None means canned ones. Raises TagprError for a record that does not exist, data that cannot be
    read, and a `respond` that returns nothing.
    """
    schema = load_schema(recipe.schema_file) if recipe.schema_file else default_schema()
    run, page = RunDir(recipe.out / recipe.name), Page(console, schema)
    page.say(
        f"One record through the whole method: recipe '{recipe.name}', training record {record}, "
        + ("canned responses built from the record itself." if respond is None else "a live model's responses.")
    )
    stages = grpo_stages(recipe)
    dataset, example = show_record(page, recipe, run, record)
    prompt = show_prompt(page, dataset, run, example)
    show_row(page, example, prompt, record)
    replies = replies_to(page, recipe, example, prompt, respond)
    parse_replies(page, replies)
    totals = score_replies(page, example, replies, stages)
    compare_replies(page, replies, totals, stages)
    update(page, stages, recipe.data.prompt.max_response_tokens)
    publish(page, recipe, run)
    report(page, recipe, run)


def command(
    recipe: RecipeName,
    overrides: Overrides = None,
    record: Annotated[int, typer.Option(metavar="N", help="Which training record, from 0.")] = 0,
    live: Annotated[bool, typer.Option("--live", help="Let the run's trained model answer (full install).")] = False,
) -> None:
    """Print all nine hops of one training record of RECIPE: load, prompt, responses, parse, score, advantage, report.

    Needs no torch and no trained model: the responses are canned, unless `--live` asks the run's newest model.

    Example: tagpr walk demo --record 3
    """
    loaded, folder = planned_run(open_recipe(recipe, overrides or ()))
    respond = full_install("tagpr_rl.backend.rollout.generate").LiveModel(loaded, folder) if live else None
    walk(loaded, record, respond=respond, console=Console())
