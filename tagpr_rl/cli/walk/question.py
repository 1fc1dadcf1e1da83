"""Hops 1 to 3 of the walk: the record, its prompt, and the row that verl reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.pretty import Pretty
from rich.text import Text

from tagpr_rl.config import Recipe
from tagpr_rl.data.lamp import load_lamp, questions_path
from tagpr_rl.prompts.compact import build_compact_prompt
from tagpr_rl.prompts.dataset import LAMP, TRAIN, Dataset, make_splits
from tagpr_rl.prompts.prompt import build_official_prompt, build_prompt, prompt_phrases
from tagpr_rl.prompts.rows import to_row
from tagpr_rl.prompts.tokens import ChatTokenizer, PromptTokens, WordTokens
from tagpr_rl.report.page.terminal import Page, value_table
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import read_manifest
from tagpr_rl.run.state import stage_status
from tagpr_rl.types import LampRecord, Prompt, TagprError


def show_record(page: Page, recipe: Recipe, run: RunDir, index: int) -> tuple[Dataset, LampRecord]:
    """Hop 1: the recipe's dataset, and its training record number `index`."""
    dataset = Dataset(recipe, page.schema, finished_data(recipe, run))
    total = len(dataset.train)
    if not 0 <= index < total:
        raise TagprError(f"--record {index}: there are {total} training records; use 0 to {total - 1}")
    record = dataset.train[index]
    page.hop(
        1,
        make_splits if dataset.folder is None else load_lamp,
        "LaMP's JSON files become records: a question, its user's profile and the gold answer. Users are held out as "
        "a whole; this record is one of the training side.",
    )
    page.block("in", source(dataset, record))
    page.block("out: LampRecord", Pretty(replace(record, profile=record.profile[:2]), max_string=200))
    page.say(f"  (profile: {len(record.profile)} items of type ProfileItem; at most 2 are shown)")
    return dataset, record


def finished_data(recipe: Recipe, run: RunDir) -> Path | None:
    """The folder of the run's finished data stage; None if the run has none or made it from another recipe."""
    for name, stage in recipe.stages.items():
        if stage.kind == "data" and stage_status(recipe, run, name).status == "done":
            return stage_dir(recipe, run, name).root
    return None


def source(dataset: Dataset, record: LampRecord) -> str:
    """Where the record comes from, for a reader."""
    data = dataset.recipe.data
    if dataset.folder is not None:
        return f"{questions_path(dataset.folder / LAMP, record.task, TRAIN)}, id {record.id}, of the finished run"
    if data.lamp_dir is not None:
        return f"the {record.task} files of {data.lamp_dir}, id {record.id}; the data stage of a run makes the same"
    return f"the embedded world, seed {data.world.seed}, {data.split} split; the data stage of a run makes the same"


BUILDERS: Mapping[str, Callable[..., Any]] = {
    "reasoning": build_prompt,
    "compact": build_compact_prompt,
    "official": build_official_prompt,
}
"""data.prompt.style -> what writes the prompt."""


def show_prompt(page: Page, dataset: Dataset, run: RunDir, record: LampRecord) -> Prompt:
    """Hop 2: retrieval, and the prompt within the recipe's limit."""
    block, retrieval = dataset.recipe.data.prompt, dataset.recipe.data.retrieval
    page.hop(
        2,
        BUILDERS[block.style],
        "The profile items nearest to the question are retrieved and written above it. A profile can never forge a "
        "tag: its markup is neutralised.",
    )
    tokens = prompt_tokens(page, dataset.recipe, run)
    prompt = dataset.prompt_maker("reasoning", tokens)(record)
    n_items = len(prompt.item_ids) + prompt.items_dropped
    page.block(
        "in",
        f"rank(record, k={retrieval.k}, method={retrieval.method!r}) -> {n_items} of {len(record.profile)} items; "
        f"data.prompt.max_tokens = {block.max_tokens}",
    )
    unit = "words" if isinstance(tokens, WordTokens) else "tokens"
    page.block(
        f"out: Prompt, {len(prompt.messages)} chat message, {prompt.n_tokens} {unit}, items "
        f"{list(prompt.item_ids)}, {prompt.items_dropped} dropped",
        Text("\n\n".join(message["content"] for message in prompt.messages)),
    )
    if isinstance(tokens, WordTokens):
        page.say(
            "  (no tokenizer here: words are counted instead of tokens"
            + (", each constant sentence as one, as in the tiny model)" if dataset.recipe.model.path is None else ")")
        )
    return prompt


def prompt_tokens(page: Page, recipe: Recipe, run: RunDir) -> PromptTokens:
    """The tokenizer of the run's finished model stage; words if there is none, or if transformers is missing."""
    for name, stage in recipe.stages.items():
        folder = stage_dir(recipe, run, name)
        if stage.kind == "model" and find_spec("transformers") and read_manifest(folder) is not None:
            return ChatTokenizer(folder.hf)
    return WordTokens(prompt_phrases(page.schema) if recipe.model.path is None else ())


def show_row(page: Page, record: LampRecord, prompt: Prompt, index: int) -> None:
    """Hop 3: the row of train.parquet."""
    page.hop(
        3,
        to_row,
        "The row that verl reads from train.parquet. data_source, ground_truth and extra_info reach the response "
        "scorer as they stand here.",
    )
    page.block("out: dict", value_table(to_row(record, prompt, index)))
