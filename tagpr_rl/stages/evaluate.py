"""Evaluation stage: official metrics on held-out users, for several stages' weights, with controls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from tagpr_rl.config import EvaluateStage, prompt_style
from tagpr_rl.data.lamp import write_predictions
from tagpr_rl.eval.controls import baselines, empty_profiles, shuffle_profiles
from tagpr_rl.eval.lamp_eval import EvalResult, evaluate, question_key
from tagpr_rl.eval.metrics import paired_difference
from tagpr_rl.eval.provenance import describe, prompts_sha256
from tagpr_rl.files import write_json, write_text
from tagpr_rl.prompts.dataset import evenly
from tagpr_rl.prompts.tokens import ChatTokenizer
from tagpr_rl.report.page.terminal import Page
from tagpr_rl.stages.context import StageContext, StageResult
from tagpr_rl.types import LampRecord, Prompt


def run(context: StageContext) -> StageResult:
    """Write eval.json, every response under responses/<model or control>.jsonl, and official predictions files."""
    recipe, stage = context.recipe, context.recipe.stages[context.name]
    assert isinstance(stage, EvaluateStage)
    context.clean()
    held_out = evenly(context.dataset.held_out, stage.questions)
    folders = {name: context.model_folder(name) for name in stage.models}
    last = stage.models[-1]
    inputs = {name: (name, held_out) for name in stage.models}
    control_records = evenly(held_out, stage.control_questions)
    if "shuffled" in stage.controls:
        inputs["shuffled"] = (last, shuffle_profiles(control_records, stage.seed))
    if "empty" in stage.controls:
        inputs["empty"] = (last, empty_profiles(control_records))
    results, prompt_hashes = _answer_all(context, stage, folders, inputs)
    base = baselines(context.dataset.train, held_out, stage.seed)
    decoding = {
        "temperature": stage.temperature,
        "max_tokens": recipe.data.prompt.max_response_tokens,
        "seed": stage.seed,
    }
    description = describe(
        dict.fromkeys(record.task for record in held_out),
        split="held out" if recipe.data.lamp_dir is None else "dev",
        setting=recipe.data.split,
        prompt_sha256=prompt_hashes[last],
        schema_sha256=context.schema.sha256,
        decoding=decoding,
    )
    facts = {
        "models": {name: results[name].as_dict() for name in stage.models},
        "controls": {name: results[name].as_dict() for name in stage.controls},
        "control_model": last,
        "baselines": {name: evaluate(held_out, given, context.schema).as_dict() for name, given in base.items()},
        "comparisons": comparisons({name: results[name] for name in stage.models}),
        "decoding": decoding,
        "description": description,
        "prompts_sha256": prompt_hashes,
    }
    write_json(context.dir.root / "eval.json", facts)
    _show_samples(context.console, context, last)
    metrics = {f"score/{name}": result.score for name, result in results.items()}
    outputs = tuple(context.dir.root / name for name in ("eval.json", "responses", "predictions"))
    return StageResult(outputs=outputs, metrics=metrics)


def _answer_all(
    context: StageContext,
    stage: EvaluateStage,
    folders: Mapping[str, Path],
    inputs: Mapping[str, tuple[str, list[LampRecord]]],
) -> tuple[dict[str, EvalResult], dict[str, str]]:
    """(label -> result, label -> hash of its prompts); one engine serves all weights in turn."""
    from tagpr_rl.backend.rollout.generate import Engine

    context.start_ray()
    results: dict[str, EvalResult] = {}
    hashes: dict[str, str] = {}
    first = next(iter(folders.values()))
    prefilled = context.recipe.model.thought_prefilled
    with context.console.status(f"  {context.name}: starting vLLM") as status, Engine(context.recipe, first) as engine:
        for label, (model, records) in inputs.items():
            status.update(f"  {context.name}: {label}, {len(records)} questions")
            tokenizer = ChatTokenizer(folders[model])
            make = context.dataset.prompt_maker(prompt_style(context.recipe, model), tokenizer)
            prompts = [make(record) for record in records]
            hashes[label] = prompts_sha256(prompts)
            engine.use(folders[model])
            generated = engine.responses(
                [tokenizer.encode(tokenizer.render(prompt.messages)) for prompt in prompts],
                temperature=stage.temperature,
                seed=stage.seed,
            )
            texts = [text for text, _ in generated]
            responses = {question_key(record): text for record, text in zip(records, texts, strict=True)}
            cut = {question_key(record) for record, (_, is_cut) in zip(records, generated, strict=True) if is_cut}
            results[label] = evaluate(records, responses, context.schema, prefilled=prefilled, cut=cut)
            _write_responses(context.dir.root / "responses" / f"{label}.jsonl", records, prompts, texts, results[label])
            for task in dict.fromkeys(record.task for record in records):
                path = context.dir.root / "predictions" / label / f"{task}.json"
                write_predictions(path, task, results[label].answers(task))
    return results, hashes


def comparisons(results: Mapping[str, EvalResult]) -> list[dict[str, Any]]:
    """Paired differences b - a of each model and the one before it, and of the last and every one before it."""
    names = list(results)
    pairs = [*pairwise(names), *((name, names[-1]) for name in names[:-2])]
    rows = []
    for a, b in pairs:
        difference, low, high = paired_difference(
            results[b].scores(), results[a].scores(), results[a].users(), tasks=results[a].tasks()
        )
        rows.append({"a": a, "b": b, "difference": difference, "low": low, "high": high})
    return rows


def _write_responses(
    path: Path,
    records: Sequence[LampRecord],
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    result: EvalResult,
) -> None:
    scored = {question.key: question for question in result.questions}
    lines = []
    for record, prompt, text in zip(records, prompts, texts, strict=True):
        question = scored[question_key(record)]
        row = {
            "record_id": record.id,
            "task": record.task,
            "user_id": record.user_id,
            "prompt": "\n".join(message["content"] for message in prompt.messages),
            "response": text,
            "answer": question.answer,
            "gold": record.gold,
            "score": question.score,
            "parse_status": question.parse_status,
            "truncated": question.truncated,
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def _show_samples(console: Console, context: StageContext, model: str) -> None:
    """Print one answered question per task."""
    page = Page(console, context.schema, context.recipe.model.thought_prefilled)
    shown: set[str] = set()
    with (context.dir.root / "responses" / f"{model}.jsonl").open(encoding="utf-8") as handle:
        for line in handle:
            row = json.loads(line)
            if row["task"] in shown:
                continue
            shown.add(row["task"])
            question = row["prompt"].rsplit("\n", 1)[-1]
            page.block(f"{row['task']}, held-out user {row['user_id']}", question)
            page.block(f"{model} answers (gold: {row['gold']})", page.trace(row["response"]))
    console.print()
