"""SFT stage: supervised fine-tuning on direct answers or on tagged chains, with verl's SFT trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tagpr_rl.backend.trainer.overrides import sft_overrides
from tagpr_rl.config import SftStage, prompt_style
from tagpr_rl.files import read_parquet, write_parquet
from tagpr_rl.prompts.compact import compact_direct
from tagpr_rl.prompts.prompt import direct_messages
from tagpr_rl.prompts.rows import sft_rows
from tagpr_rl.prompts.tokens import ChatTokenizer, Messages
from tagpr_rl.run import metrics
from tagpr_rl.stages.common import (
    RESUMABLE,
    capped,
    last_checkpoint,
    publish,
    resume_from,
    stage_notes,
    stage_paths,
    steps_within,
    tracking,
    wait_for,
)
from tagpr_rl.stages.context import StageContext, StageResult
from tagpr_rl.types import LampRecord, TagprError


def run(context: StageContext) -> StageResult:
    """Fine-tune the weights of `init`; publish them in `hf/`."""
    recipe, stage = context.recipe, context.recipe.stages[context.name]
    assert isinstance(stage, SftStage)
    context.guard_attempt()
    context.clean(*RESUMABLE)
    rows, dropped = _examples(context, stage)
    if len(rows) < stage.batch_size:
        raise TagprError(
            f"stage '{context.name}': {len(rows)} training examples are fewer than batch_size={stage.batch_size}"
        )
    train = context.dir.root / "train.parquet"
    write_parquet(train, rows)
    paths = stage_paths(context, stage.init, train)
    steps = steps_within(stage.steps, stage.batch_size, len(rows), stage.max_epochs)
    overrides = sft_overrides(recipe, context.name, paths, steps)
    start = resume_from(context, paths.model)
    if start.step < steps:
        ray = context.start_ray()
        from tagpr_rl.backend.session.room import reserved
        from tagpr_rl.backend.trainer.sft import run_sft as train_remote

        nodes, devices = recipe.platform.nodes, recipe.platform.devices_per_node
        with reserved(nodes, devices) as group:
            # Ray would start a task again from its first step, beside the rows that it has written.
            task = ray.remote(num_cpus=1, max_retries=0)(train_remote).remote(
                group, devices, overrides, tracking(context), recipe.platform.device
            )
            wait_for(context, task, steps, lambda row: f"loss {row.get('train/loss', float('nan')):.3f}")
    publish(context, last_checkpoint(context, steps) / "huggingface")
    last = metrics.last(context.dir.metrics) or {}
    figures = {"examples": float(len(rows)), "too_long": float(dropped), "loss": float(last["train/loss"])}
    notes = (*stage_notes(context, start), *capped(steps, stage.steps, len(rows), stage.max_epochs))
    return StageResult(outputs=(context.dir.hf, context.dir.metrics), metrics=figures, notes=notes)


def _examples(context: StageContext, stage: SftStage) -> tuple[list[dict[str, Any]], int]:
    """(tokenised rows, number of examples left out because they are too long)."""
    recipe = context.recipe
    tokenizer = ChatTokenizer(context.earlier(stage.init, reads=("hf",)).hf, prompt_style(recipe, context.name))
    limit = recipe.data.prompt.max_response_tokens
    train = [record for record in context.dataset.train if record.gold is not None]
    if stage.dataset == "direct":
        make = context.dataset.prompt_maker("direct", tokenizer)
        return sft_rows(tokenizer, [(make(record).messages, str(record.gold)) for record in train], limit)
    path = context.nearest("chains", reads=("chains.parquet",)).root / "chains.parquet"
    chains = list(read_parquet(path, ["task", "record_id", "messages", "response"]))
    direct: Mapping[str, Callable[[Messages], Messages]] = {
        "reasoning": partial(direct_messages, schema=context.schema),
        "compact": compact_direct,
        "official": tuple,
    }
    return sft_rows(tokenizer, chain_examples(stage.dataset, chains, train, direct[recipe.data.prompt.style]), limit)


def chain_examples(
    dataset: str,
    chains: Sequence[Mapping[str, Any]],
    train: Sequence[LampRecord],
    direct: Callable[[Messages], Messages],
) -> list[tuple[Messages, str]]:
    """(prompt, response) of each example made of the rows of chains.parquet; `dataset`: chains, answers or both."""
    tagged = [(row["messages"], row["response"]) for row in chains] if dataset != "answers" else []
    return tagged + (answer_examples(chains, train, direct) if dataset != "chains" else [])


def answer_examples(
    chains: Sequence[Mapping[str, Any]], train: Sequence[LampRecord], direct: Callable[[Messages], Messages]
) -> list[tuple[Messages, str]]:
    """(direct prompt, gold) of each row of chains.parquet: the same questions and items, as often, without the thought.

    The gold also stands in for a chain's wrong answer. `direct`: a prompt that asks for a thought -> one that does not.
    """
    golds = {(record.task, record.id): str(record.gold) for record in train}
    prompts = [direct(row["messages"]) for row in chains]
    return [(prompt, golds[row["task"], row["record_id"]]) for prompt, row in zip(prompts, chains, strict=True)]
