"""The recipe's data: schema, questions, rankings, and whether they make a whole step. Large files are sampled."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tagpr_rl.config import ChainsStage, DataStage, EvaluateStage, GrpoStage, PrmuStage, Recipe, SftStage
from tagpr_rl.data.lamp import outputs_path, questions_path, splits_present, stream_lamp
from tagpr_rl.data.people import require_several_questions, tasks_of_one_user
from tagpr_rl.data.split import at_most
from tagpr_rl.model.fit import examine
from tagpr_rl.model.template import TemplateFacts
from tagpr_rl.preflight.finding import Finding, PlannedRun
from tagpr_rl.prompts.dataset import Dataset, evenly, first_of_task
from tagpr_rl.prompts.prompt import prompt_phrases
from tagpr_rl.prompts.rankings import rankings_path, read_rankings
from tagpr_rl.prompts.rows import select
from tagpr_rl.prompts.tokens import ChatTokenizer, PromptTokens, WordTokens
from tagpr_rl.run.layout import stage_dir
from tagpr_rl.tags.schema import TagSchema, default_schema, load_schema
from tagpr_rl.types import LampRecord, TagprError

WHOLE_BYTES = 100 << 20
"""Question files of this size together are read as the run reads them; of larger ones the beginning is."""
EACH_TASK = 20
"""Questions of a task and side whose prompts are made."""
SAMPLE = 200
"""Records of a larger file that are read."""
WORLD_USERS, WORLD_QUESTIONS = 4000, 40
"""A larger world is drawn at this size."""
MOST_WORLD_QUESTIONS = 20_000_000


@dataclass(frozen=True, slots=True)
class Questions:
    """The recipe's questions, or the first of them."""

    train: Sequence[LampRecord]
    held_out: Sequence[LampRecord]
    whole: bool
    """All of them; otherwise counts mean nothing."""


def absent(path: Path | None) -> bool:
    """Whether a path that the recipe names is not on this machine. One that is here and wrong is wrong anywhere."""
    return path is not None and not path.exists()


def schema_of(recipe: Recipe) -> TagSchema:
    """The recipe's tag schema. TagprError if its file is missing or wrong."""
    return load_schema(recipe.schema_file) if recipe.schema_file is not None else default_schema()


def schema(plan: PlannedRun) -> Iterator[Finding]:
    """The schema's file."""
    try:
        schema_of(plan.recipe)
    except TagprError as error:
        yield Finding("schema_file", None, str(error))


def questions(plan: PlannedRun) -> Iterator[Finding]:
    """The data itself, then whether each stage finds a whole step in it, then whether prompts can be built."""
    recipe = plan.recipe
    world = recipe.data.world
    size = (world.train_users + world.held_out_users + world.time_users) * world.questions_per_user
    if recipe.data.lamp_dir is None and size > MOST_WORLD_QUESTIONS:
        yield Finding(
            "data.world.questions_per_user",
            world.questions_per_user,
            f"the world would have {size:,} questions, which no memory holds",
            "use fewer users or questions",
        )
        return
    try:
        found = read_questions(plan)
    except TagprError as error:
        key = "data.lamp_dir" if recipe.data.lamp_dir is not None else "data"
        yield Finding(key, None, str(error), on_machine=absent(recipe.data.lamp_dir))
        return
    yield from _golds(recipe, found)
    yield from _own_vectors(plan, found)
    yield from _teacher(plan)
    if found.whole:
        yield from _whole_steps(plan, found)
    yield from _prompts(plan, found)


def _own_vectors(plan: PlannedRun, found: Questions) -> Iterator[Finding]:
    """A learned vector for each user, where most users have one question. Without a whole file this is not known."""
    for name, stage in plan.stages(PrmuStage) if found.whole else ():
        if stage.asks_for_vectors:
            try:
                require_several_questions(found.train, f"stages.{name}")
            except TagprError as error:
                yield Finding(f"stages.{name}.identity", None, str(error))


def read_questions(plan: PlannedRun) -> Questions:
    """The questions as the data stage makes them, whole if that takes seconds. Raises TagprError as the stage does."""
    recipe, data = plan.recipe, plan.recipe.data
    name = next((name for name, stage in recipe.stages.items() if isinstance(stage, DataStage)), None)
    folder = stage_dir(recipe, plan.folder, name).root if name is not None and name not in plan.todo else None
    if folder is None and data.lamp_dir is None:
        users = min(data.world.train_users, WORLD_USERS), min(data.world.questions_per_user, WORLD_QUESTIONS)
        small = data.world.model_copy(
            update={
                "train_users": users[0],
                "held_out_users": min(data.world.held_out_users, WORLD_USERS),
                "time_users": min(data.world.time_users, WORLD_USERS),
                "questions_per_user": users[1],
            }
        )
        dataset = Dataset(
            recipe.model_copy(update={"data": data.model_copy(update={"world": small})}), default_schema()
        )
        return Questions(dataset.train, dataset.held_out, small == data.world)
    source = folder / "lamp" if folder is not None else data.lamp_dir
    assert source is not None
    if folder is not None and not source.is_dir():
        return Questions((), (), False)  # the stage that reads a finished one compares its files with their hashes
    if not source.is_dir():
        what = "a file, not a folder" if source.exists() else "no such folder"
        raise TagprError(f"{source}: {what}; give the folder that holds LaMP_1, LaMP_2, ...")
    pairs = [(task, split) for task in data.tasks for split in splits_present(source, task)]
    size = sum(questions_path(source, task, split).stat().st_size for task, split in pairs)
    if size <= WHOLE_BYTES:
        dataset = Dataset(recipe, default_schema(), folder)
        return Questions(dataset.train, dataset.held_out, True)
    missing = [task for task in data.tasks if task not in {task for task, _ in pairs}]
    if missing:
        raise TagprError(f"{source}: no questions of {', '.join(missing)}; download them, or leave the task out")
    return _first_records(source, pairs, data.skip_defective)


def _first_records(folder: Path, pairs: Sequence[tuple[str, str]], skip_defective: int) -> Questions:
    """The first records of each file. A gold without a question is not looked for: most questions are not read."""
    sides: dict[str, list[LampRecord]] = {"train": [], "dev": [], "test": []}
    faults: list[str] = []
    for task, split in pairs:
        outputs = outputs_path(folder, task, split)
        golds = outputs if outputs.is_file() else None
        stream = stream_lamp(questions_path(folder, task, split), golds, split, task=task, on_fault=faults.append)
        sides[split] += islice(stream, SAMPLE)
    at_most(faults, skip_defective, f"data.lamp_dir={folder}")
    return Questions(sides["train"] or sides["dev"], sides["dev"] or sides["train"], False)


def _golds(recipe: Recipe, found: Questions) -> Iterator[Finding]:
    """Tasks whose questions have no answers to train on or to compare with."""
    for side, records in (("training", found.train), ("held-out", found.held_out)):
        without = Counter(record.task for record in records if record.gold is None)
        for task, count in without.items():
            yield Finding(
                "data.lamp_dir",
                recipe.data.lamp_dir,
                f"{count} {side} questions of {task} have no gold",
                f"put the task's *_outputs.json beside its questions, or leave {task} out of data.tasks",
            )


def _teacher(plan: PlannedRun) -> Iterator[Finding]:
    """The rule-based teacher of the embedded world cannot read other questions."""
    for name, stage in plan.stages(ChainsStage):
        if stage.teacher_kind == "scripted" and plan.recipe.data.lamp_dir is not None:
            yield Finding(
                f"stages.{name}.teacher",
                "scripted",
                "it knows the rules of the embedded world, not LaMP's questions",
                "use grounded or heuristic, or a language model",
            )


def _whole_steps(plan: PlannedRun, found: Questions) -> Iterator[Finding]:
    """Stages whose questions do not fill a step."""
    train, recipe = len(found.train), plan.recipe
    for name, grpo in plan.stages(GrpoStage):
        left, why = train, f"there are {train} training questions"
        if grpo.filter is not None:
            rows = [{"extra_info": {"task": r.task, "profile_texts": r.profile}} for r in found.train]
            counts: dict[str, int] = {"all": train}
            left = len(select(rows, range(train), grpo.filter, counts))
            why = f"its filter leaves {left} questions ({', '.join(f'{key} {n}' for key, n in counts.items())})"
        if left < grpo.prompts_per_step and grpo.rollouts_from is None:
            yield Finding(
                f"stages.{name}.prompts_per_step", grpo.prompts_per_step, why, "lower it, or widen the filter"
            )
    most = {name: train * (stage.samples + 1) for name, stage in _all(recipe, ChainsStage)}
    for name, sft in plan.stages(SftStage):
        examples = train if sft.dataset == "direct" else max(most.values(), default=train)
        if examples < sft.batch_size:
            yield Finding(
                f"stages.{name}.batch_size",
                sft.batch_size,
                f"there are at most {examples} training examples",
                "lower it",
            )
        yield from _epochs(name, sft, examples)
    for name, prmu in plan.stages(PrmuStage):
        pairs = min((stage.max_pairs for _, stage in _all(recipe, ChainsStage)), default=prmu.batch_size)
        if pairs < prmu.batch_size:
            yield Finding(
                f"stages.{name}.batch_size",
                prmu.batch_size,
                f"the chains stage makes at most {pairs} pairs (max_pairs)",
                "lower it, or raise max_pairs",
            )
        yield from _epochs(name, prmu, pairs)
    tasks = {record.task for record in found.held_out}
    for side, records in (("training", found.train), ("held-out", found.held_out)):
        if absent := [task for task in recipe.data.tasks if task not in {record.task for record in records}]:
            yield Finding("data.tasks", None, f"no {side} questions of {', '.join(absent)}", "leave it out", True)
    for name, evaluate in plan.stages(EvaluateStage):
        if evaluate.questions is not None and evaluate.questions < len(tasks):
            yield Finding(
                f"stages.{name}.questions",
                evaluate.questions,
                f"fewer than the {len(tasks)} tasks: some are not evaluated",
                "raise it",
                True,
            )
        lonely = tasks_of_one_user(evenly(list(found.held_out), evaluate.questions))
        if "shuffled" in evaluate.controls and lonely:
            yield Finding(
                f"stages.{name}.controls",
                "shuffled",
                f"the questions of {', '.join(lonely)} have one user, and a swap needs two",
                "take more questions or more users, or leave the control out",
            )


def _epochs(name: str, stage: SftStage | PrmuStage, examples: int) -> Iterator[Finding]:
    """Passes that end before the first update has all its examples."""
    if stage.batch_size <= examples and stage.max_epochs * examples < stage.batch_size:
        yield Finding(
            f"stages.{name}.max_epochs",
            f"{stage.max_epochs:g}",
            f"of at most {examples} examples is less than one update of batch_size={stage.batch_size}",
            "raise it",
        )


def _all(recipe: Recipe, kind: type[Any]) -> list[tuple[str, Any]]:
    return [(name, stage) for name, stage in recipe.stages.items() if isinstance(stage, kind)]


def templates(plan: PlannedRun) -> Iterator[Finding]:
    """The policy's chat template and tokenizer: what they do with prompts, tags and thoughts."""
    block = plan.recipe.model
    if block.path is None and block.chat_template is not None and not block.chat_template.is_file():
        yield Finding("model.chat_template", block.chat_template, "no such file", "give a Jinja file, or leave it out")
    if block.path is None or not (block.path / "tokenizer_config.json").is_file():
        return
    try:
        own = schema_of(plan.recipe)
    except TagprError:
        own = default_schema()
    _, mistakes = _template(block.path, own, block.chat_template, block.thought_prefilled)
    for mistake in mistakes:
        yield Finding("model.path", block.path, mistake)


@functools.lru_cache(maxsize=4)
def _template(
    folder: Path, own: TagSchema, file: Path | None, prefilled: bool | None
) -> tuple[TemplateFacts | None, tuple[str, ...]]:
    """`model.fit.examine`, once a process."""
    facts, mistakes = examine(folder, own, file=file, prefilled=prefilled)
    return facts, tuple(mistakes)


def _prompts(plan: PlannedRun, found: Questions) -> Iterator[Finding]:
    """Whether a prompt of each task fits its limit, with the rankings and the tokenizer that the run will use."""
    recipe = plan.recipe
    try:
        own = schema_of(recipe)
    except TagprError:
        return  # its own check names it
    if recipe.data.retrieval.encoder is not None:  # computing embeddings takes minutes: the order does not matter here
        block = recipe.data.retrieval.model_copy(update={"method": "none", "encoder": None})
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"retrieval": block})})
    folder = recipe.model.path
    tokens: PromptTokens = WordTokens(prompt_phrases(own))
    if folder is not None and (folder / "tokenizer_config.json").is_file():
        facts, mistakes = _template(folder, own, recipe.model.chat_template, recipe.model.thought_prefilled)
        if mistakes or facts is None:
            return  # `templates` names them
        chat = tokens = ChatTokenizer(folder, schema=own)
        chat.tokenizer.chat_template = facts.template or chat.tokenizer.chat_template
    records = [record for side in (found.train, found.held_out) for record in first_of_task(side, EACH_TASK)]
    try:
        make = Dataset(recipe, own).prompt_maker("reasoning", tokens)
        prompts = [make(record) for record in records]
    except TagprError as error:
        yield Finding("data.prompt.max_tokens" if "limit" in str(error) else "data.retrieval", None, str(error))
        return
    if any(prompt.items_dropped for prompt in prompts) and not any(prompt.item_ids for prompt in prompts):
        yield Finding(
            "data.prompt.max_tokens",
            recipe.data.prompt.max_tokens,
            f"none of {len(prompts)} prompts has room for a profile item, so no answer can be personal",
            "raise it",
        )
    shortest = min((prompt.n_tokens for prompt in prompts), default=0)
    for name, stage in plan.stages(GrpoStage):
        if stage.max_prompt_tokens is not None and stage.max_prompt_tokens < shortest:
            yield Finding(
                f"stages.{name}.max_prompt_tokens",
                stage.max_prompt_tokens,
                f"the shortest of {len(records)} prompts has {shortest} tokens, so no question is left",
                "raise it",
            )


def rankings(plan: PlannedRun) -> Iterator[Finding]:
    """The files of official rankings."""
    block, tasks = plan.recipe.data.retrieval, plan.recipe.data.tasks
    if block.path is None:
        return
    files = [rankings_path(block.path, task) for task in tasks] if block.path.is_dir() else [block.path]
    size = sum(path.stat().st_size for path in files if path.is_file())
    if size > WHOLE_BYTES:
        return
    try:
        read_rankings(block.path, tasks)
    except TagprError as error:
        yield Finding("data.retrieval.path", None, str(error), on_machine=absent(block.path))
