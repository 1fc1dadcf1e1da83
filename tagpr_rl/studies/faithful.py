"""Tests whether a stage's answers follow from its thoughts, and these from the profile (`tagpr study faithful`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tagpr_rl.config import GrpoStage, Recipe, SftStage, prompt_style
from tagpr_rl.eval.alteration import (
    DROPPED,
    FIRST_DROPPED,
    OWN,
    SWAPPED,
    Alteration,
    Outcome,
    aggregate,
    alterations,
    other_thoughts,
    thought_text,
)
from tagpr_rl.eval.controls import shuffle_profiles
from tagpr_rl.eval.lamp_eval import question_key
from tagpr_rl.eval.metrics import task_mean
from tagpr_rl.files import write_json
from tagpr_rl.prompts.dataset import evenly
from tagpr_rl.prompts.tokens import ChatTokenizer
from tagpr_rl.reward.task import task_reward
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import read_manifest
from tagpr_rl.stages.context import LazyRay, StageContext
from tagpr_rl.tags.grammar import final_answer, parse
from tagpr_rl.types import LampRecord, Prompt, TaggedTrace, TagprError

FORMAT = 1
Generate = Callable[[Sequence[list[int]]], Sequence[str]]


def faithful(
    recipe: Recipe, run: RunDir, name: str | None, *, questions: int = 200, console: Console | None = None
) -> Path:
    """Test the weights of stage `name` (None = the last finished one that reasons); writes `faithful/<stage>.json`.

    About `questions` held-out questions, greedy. Returns the file's path. TagprError if the stage is not finished
    or does not reason, or if no response is well formed.
    """
    console = console or Console()
    name = reasoning_stage(recipe, run, name)
    started = time.monotonic()
    with LazyRay(recipe) as start_ray:
        context = StageContext(recipe, run, name, console, start_ray)
        records = evenly(context.dataset.held_out, questions)
        folder = stage_dir(recipe, run, name).hf.resolve()
        context.earlier(name, reads=("hf",))
        start_ray()
        from tagpr_rl.backend.rollout.generate import Engine

        with console.status(f"  {name}: faithfulness, {len(records)} questions"), Engine(recipe, folder) as engine:
            facts = measure(context, folder, records, lambda prompts: engine(prompts, temperature=0.0))
    facts = {"format": FORMAT, "run": recipe.name, "stage": name, **facts}
    path = run.root / "faithful" / f"{name}.json"
    write_json(path, {**facts, "seconds": round(time.monotonic() - started, 1)})
    return path


def reasoning_stage(recipe: Recipe, run: RunDir, name: str | None) -> str:
    """The stage to test. TagprError for one that is unknown, answers directly or is not finished."""
    fit = [
        other
        for other, stage in recipe.stages.items()
        if isinstance(stage, SftStage | GrpoStage) and prompt_style(recipe, other) == "reasoning"
    ]
    if name is not None and name not in fit:
        raise TagprError(f"--stage {name}: no stage that answers with a thought; those are {', '.join(fit) or 'none'}")
    done = [other for other in fit if read_manifest(stage_dir(recipe, run, other)) is not None]
    if not done or (name is not None and name not in done):
        raise TagprError(f"{run.root}: stage '{name or ', '.join(fit)}' is not finished; run the recipe first")
    return name or done[-1]


def measure(context: StageContext, folder: Path, records: Sequence[LampRecord], generate: Generate) -> dict[str, Any]:
    """All figures of the JSON file, without the stage's name and the duration."""
    schema = context.schema
    tokenizer = ChatTokenizer(folder, schema=schema)
    prompts = profile_prompts(context, tokenizer, records)
    rendered = {kind: [tokenizer.render(prompt.messages) for prompt in prompts[kind]] for kind in prompts}
    encoded = {kind: tokenizer.encode_many(texts) for kind, texts in rendered.items()}
    parsed = [parse(text, schema) for text in generate(encoded[OWN])]
    good = [(i, response.trace) for i, response in enumerate(parsed) if response.trace is not None]
    if not good:
        raise TagprError(f"stage '{context.name}': none of {len(records)} responses is well formed; nothing to alter")
    limit = context.recipe.data.prompt.max_tokens + context.recipe.data.prompt.max_response_tokens
    cases: list[tuple[int, TaggedTrace, Alteration]] = []
    texts: list[list[int]] = []
    too_long = 0
    for (i, trace), other in zip(good, _others(records, good), strict=True):
        for altered in alterations(trace.steps, other, seed=question_key(records[i])):
            ids = encoded[altered.profile][i]
            if altered.steps is not None:
                start = tokenizer.learned(rendered[altered.profile][i], thought_text(altered.steps))
                ids = ids + tokenizer.encode(start)
            if len(ids) >= limit:
                too_long += 1
                continue
            cases.append((i, trace, altered))
            texts.append(ids)
    answers = [final_answer(text) for text in generate(texts)]
    outcomes = [
        _outcome(records[i], trace, altered, answer)
        for (i, trace, altered), answer in zip(cases, answers, strict=True)
        if answer  # a thought that was cut says nothing of the answer
    ]
    own = [task_reward(records[i].task, trace.answer, str(records[i].gold)) for i, trace in good]
    where = [records[i].task for i, _ in good], [records[i].user_id for i, _ in good]
    return {
        "questions": len(records),
        "well_formed": len(good),
        "users": len(set(where[1])),
        "too_long": too_long,
        "without_answer": answers.count(""),
        "own_score": list(task_mean(own, *where)),
        **aggregate(outcomes),
    }


def profile_prompts(
    context: StageContext, tokenizer: ChatTokenizer, records: Sequence[LampRecord]
) -> Mapping[str, list[Prompt]]:
    """Prompts of the same questions: own profile, own without its first item, no profile, another user's profile."""
    make = context.dataset.prompt_maker("reasoning", tokenizer)
    make_foreign = context.dataset.prompt_maker("reasoning", tokenizer, foreign=True)
    own = [make(record) for record in records]
    return {
        OWN: own,
        FIRST_DROPPED: [
            make_foreign(without_first(record, prompt)) for record, prompt in zip(records, own, strict=True)
        ],
        DROPPED: [make_foreign(replace(record, profile=())) for record in records],
        SWAPPED: [
            make_foreign(record) for record in shuffle_profiles(records, context.recipe.stages[context.name].seed)
        ],
    }


def without_first(record: LampRecord, prompt: Prompt) -> LampRecord:
    """The record without the profile item that stood first in its prompt."""
    first = prompt.item_ids[:1]
    return replace(record, profile=tuple(item for item in record.profile if item.id not in first))


def _others(records: Sequence[LampRecord], good: Sequence[tuple[int, TaggedTrace]]) -> list[Any]:
    keys = [(records[i].task, records[i].user_id) for i, _ in good]
    return other_thoughts(keys, [trace.steps for _, trace in good])


def _outcome(record: LampRecord, trace: TaggedTrace, altered: Alteration, answer: str) -> Outcome:
    gold = str(record.gold)
    return Outcome(
        key=question_key(record),
        task=record.task,
        user_id=record.user_id,
        alteration=altered.alteration,
        tag=altered.tag,
        changed=answer != trace.answer,
        score=task_reward(record.task, answer, gold),
        own_score=task_reward(record.task, trace.answer, gold),
    )
