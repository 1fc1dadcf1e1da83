"""Model stage: build the tiny model and tokenizer from the training text, or link the given folder."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from tagpr_rl.chains.models import teacher_for
from tagpr_rl.chains.teachers.interface import TeacherRequest
from tagpr_rl.config import ModelStage
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.files import write_json, write_text
from tagpr_rl.model.fetch import copy_of, model_folder
from tagpr_rl.model.fit import config_mistakes, examine, read_config, stop_ids
from tagpr_rl.model.template import TemplateFacts, require
from tagpr_rl.prompts.compact import build_compact_prompt
from tagpr_rl.prompts.dataset import TRAIN
from tagpr_rl.prompts.prompt import DIRECT_INSTRUCTION, build_prompt, prompt_phrases
from tagpr_rl.stages.context import StageContext, StageResult
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import LampRecord, Prompt, TagprError

TEMPLATE = "template.json"
"""What the chat template and the tokenizer do, beside `hf/`."""
JINJA, GENERATION = OWN_FILES = ("chat_template.jinja", "generation_config.json")
"""Files that `hf/` may have of its own, in place of the model's."""
CORPUS_SIZE = 20_000
"""At most this many prompts go into the tiny tokenizer's corpus."""


def run(context: StageContext) -> StageResult:
    """Publish `hf/`: model, tokenizer, chat template."""
    stage = context.recipe.stages[context.name]
    assert isinstance(stage, ModelStage)
    context.clean()
    path = context.recipe.model.path
    made = _tiny(context) if path is None else _link(context, path)
    facts = _probe(context)
    record = context.dir.root / TEMPLATE
    write_json(record, facts.record())
    linked = context.dir.hf / "config.json" in made.outputs
    own = [file for name in OWN_FILES if not (file := context.dir.hf / name).is_symlink() and file.is_file()]
    return replace(
        made,
        outputs=(*made.outputs, record, *(own if linked and not context.dir.hf.is_symlink() else ())),
        notes=(*made.notes, *facts.notes),
        details={**made.details, "template": facts.record()},
    )


def _probe(context: StageContext) -> TemplateFacts:
    """Look at the template and the tokenizer in `hf`, and mend there what can be mended: see `_own_files`."""
    block, folder = context.recipe.model, context.dir.hf
    found, mistakes = examine(folder, context.schema, file=block.chat_template, prefilled=block.thought_prefilled)
    mistakes += config_mistakes(read_config(folder / "config.json"), found) if found is not None else []
    facts = require(f"model.path={block.path}" if block.path is not None else "the tiny model", found, mistakes)
    known, wanted = stop_ids(folder, facts)
    if facts.template is not None or known != wanted:
        _own_files(folder, facts.template, wanted)
    return facts


def _own_files(folder: Path, template: str | None, stops: list[int]) -> None:
    """Make `folder`, if it is a link, a folder of links, and give it its own template and ids that end a response.

    Every reader of the folder then does the same: rollouts, evaluation, the exported model on a server.
    """
    if folder.is_symlink():
        source = folder.resolve()
        folder.unlink()
        folder.mkdir()
        for file in source.iterdir():
            if file.is_file():
                (folder / file.name).symlink_to(file)
    config = folder / GENERATION
    values = read_config(config)
    config.unlink(missing_ok=True)
    write_json(config, {**values, "eos_token_id": stops})
    if template is not None:
        (folder / JINJA).unlink(missing_ok=True)
        write_text(folder / JINJA, template)


def _link(context: StageContext, path: Path) -> StageResult:
    """Link `hf` to the user's folder or the hub's copy: weights may have hundreds of gigabytes.

    On a cluster, whose nodes do not share the hub's cache, the hub's copy is copied. A user's folder must be shared.
    """
    if path.suffix == ".gguf":
        return _convert(context, path)
    named, path = path, model_folder(path, "model.path")
    needed = ("config.json", "tokenizer_config.json")
    missing = [name for name in needed if not (path / name).is_file()]
    if missing:
        raise TagprError(f"model.path={path}: no {', '.join(missing)} there; give a Hugging Face model folder")
    if path != named and context.recipe.platform.ray_address is not None:
        copy_of(path, context.dir.hf)
    else:
        context.dir.hf.symlink_to(path.resolve())
    return StageResult(outputs=tuple(context.dir.hf / name for name in needed))


def _convert(context: StageContext, path: Path) -> StageResult:
    from tagpr_rl.model.gguf import convert_gguf

    if not path.is_file():
        raise TagprError(f"model.path={path}: no such file; give a GGUF file, a Hugging Face folder or a hub name")
    facts = convert_gguf(path, context.dir.hf)
    note = f"converted from {path.name}: {facts['name']}, {facts['architecture']}, licence {facts['licence']}"
    return StageResult(
        outputs=(context.dir.hf,), metrics={"parameters": float(facts["parameters"])}, notes=(note,), details=facts
    )


def _tiny(context: StageContext) -> StageResult:
    from tagpr_rl.model.tiny import build_tiny

    recipe, schema = context.recipe, context.schema
    texts = corpus(context, schema)
    tiny = recipe.model.tiny
    info = build_tiny(
        context.dir.hf,
        corpus_texts=texts,
        phrases=phrases(schema),
        hidden=tiny.hidden,
        layers=tiny.layers,
        heads=tiny.heads,
        ffn=tiny.ffn,
        max_vocab=tiny.max_vocab,
        max_positions=max(2048, recipe.data.prompt.max_tokens + recipe.data.prompt.max_response_tokens),
        seed=tiny.seed,
    )
    metrics = {"vocabulary": float(info.vocab_size), "parameters": float(info.parameters)}
    return StageResult(outputs=(context.dir.hf,), metrics=metrics, notes=(f"tokenizer: {info.kind}",))


def phrases(schema: TagSchema) -> list[str]:
    """Constant strings that a word-level tokenizer may store as one token each."""
    tags = [f"<{slash}{name}>" for name in (*schema.names, "think") for slash in ("", "/")]
    labels = [label for task in TASKS.values() for label in task.labels]
    return [*prompt_phrases(schema), DIRECT_INSTRUCTION, *tags, *labels]


def corpus(context: StageContext, schema: TagSchema) -> list[str]:
    """Prompt contents of training records, without a limit, and golds.

    Prompts of held-out records are included as well, because real text would otherwise have many unknown words; their
    golds are not. The teacher's words are those of the later chains.
    """
    dataset = context.dataset
    train, held_out = dataset.train, dataset.held_out
    dataset.embed()
    retrieve, block = dataset.retriever(), context.recipe.data.prompt

    def unlimited(record: LampRecord, style: str) -> Prompt:
        items, limit = retrieve(record), sys.maxsize
        build = partial(build_prompt, schema=schema)
        if block.style == "compact":
            build = partial(build_compact_prompt, block=block.compact)
        return build(record, items, style=style, max_tokens=limit, count_tokens=lambda _: 0)

    texts = [record.gold for record in train if record.gold is not None]
    style = "official" if block.style == "official" else "reasoning"
    shown = [(record, unlimited(record, style)) for record in (*train, *held_out)[:CORPUS_SIZE]]
    bare = [replace(record, profile=()) for record in first_of_each_task(train)]
    shown += [(record, unlimited(record, style)) for record in bare for style in ("reasoning", "direct")]
    texts += [message["content"] for _, prompt in shown for message in prompt.messages]
    teacher = teacher_for(context.recipe, error_rate=0.5)
    requests = [TeacherRequest(record, prompt) for record, prompt in shown if record.split == TRAIN]
    return texts + [reply.text for reply in teacher.generate(requests)]


def first_of_each_task(records: list[LampRecord]) -> list[LampRecord]:
    """One record per task."""
    return list({record.task: record for record in reversed(records)}.values())
