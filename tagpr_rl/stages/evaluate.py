"""Evaluation stage: official metrics on held-out users, for several stages' weights, with controls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from tagpr_rl.config import EvaluateStage, prompt_styles
from tagpr_rl.data.lamp import write_predictions
from tagpr_rl.eval.controls import baselines, empty_profiles, shuffle_profiles
from tagpr_rl.eval.lamp_eval import EvalResult, evaluate, question_key
from tagpr_rl.eval.metrics import paired_difference
from tagpr_rl.eval.provenance import describe, prompts_sha256
from tagpr_rl.files import write_json, write_text
from tagpr_rl.prompts.dataset import evenly
from tagpr_rl.report.page.terminal import Page
from tagpr_rl.stages.asking import Asked, Asker, Request, room_for
from tagpr_rl.stages.context import StageContext, StageResult
from tagpr_rl.types import LampRecord


def run(context: StageContext) -> StageResult:
    """Write eval.json, every response under responses/<model or control>.jsonl, and official predictions files."""
    recipe, stage = context.recipe, context.recipe.stages[context.name]
    assert isinstance(stage, EvaluateStage)
    context.clean()
    held_out = evenly(context.dataset.held_out, stage.questions)
    last = stage.models[-1]
    answered, base_prompts = _ask_all(context, stage, held_out)
    results = {label: asked.result for label, asked in answered.items()}
    hashes = {label: prompts_sha256(asked.prompts) for label, asked in answered.items()}
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
        prompt_sha256=hashes[last],
        schema_sha256=context.schema.sha256,
        decoding=decoding,
        n=len(held_out),
        n_users=len({record.user_id for record in held_out}),
    )
    others = [label for label in results if label not in (*stage.models, *stage.controls)]
    facts = {
        "models": {name: results[name].as_dict() for name in stage.models},
        "base_prompts": base_prompts,
        "other_prompts": {label: results[label].as_dict() for label in others},
        "controls": {name: results[name].as_dict() for name in stage.controls},
        "control_model": last,
        "baselines": {name: evaluate(held_out, given, context.schema).as_dict() for name, given in base.items()},
        "comparisons": comparisons({name: results[name] for name in stage.models}),
        "decoding": decoding,
        "description": description,
        "prompts_sha256": hashes,
    }
    write_json(context.dir.root / "eval.json", facts)
    _show_samples(context.console, context, last)
    metrics = {f"score/{name}": result.score for name, result in results.items()}
    metrics |= {f"truncated/{name}": result.truncated for name, result in results.items()}
    outputs = tuple(context.dir.root / name for name in ("eval.json", "responses", "predictions"))
    return StageResult(outputs=outputs, metrics=metrics, notes=choice_notes(base_prompts))


def _ask_all(
    context: StageContext, stage: EvaluateStage, held_out: list[LampRecord]
) -> tuple[dict[str, Asked], dict[str, dict[str, Any]]]:
    """(label -> answers, model -> how its prompt was chosen); one engine serves all weights in turn.

    The label is the model's or the control's name; another prompt of a model is `<model>-<prompt>`. All responses and
    predictions are written.
    """
    from tagpr_rl.backend.rollout.generate import Engine, response_room

    context.start_ray()
    recipe = context.recipe
    offered = {name: prompt_styles(recipe, stage, name) for name in stage.models}
    first = context.model_folder(stage.models[0])
    asked_by = [style for styles in offered.values() for style in styles]
    positions = response_room(recipe, first)
    room, thought = room_for(stage, asked_by, recipe.data.prompt.max_response_tokens, positions)
    answered: dict[str, Asked] = {}
    choices: dict[str, dict[str, Any]] = {}
    with (
        context.console.status(f"  {context.name}: starting vLLM") as status,
        Engine(recipe, first, room) as engine,
    ):
        asker = Asker(context, stage, engine, thought)

        def ask(label: str, request: Request) -> None:
            status.update(f"  {context.name}: {label}, {len(request.records)} questions")
            answered[label] = asker.ask(request)
            _write(context.dir.root, label, answered[label])

        for name, styles in offered.items():
            status.update(f"  {context.name}: {name}, the best of {', '.join(styles)}")
            chosen, scores = asker.choose(name, styles)
            ask(name, Request(name, chosen, held_out))
            for style in scores:
                if style != chosen:
                    ask(f"{name}-{style}", Request(name, style, held_out))
            if scores:
                choices[name] = {"chosen": chosen, "training_scores": scores, "thinking_tokens": thought}
        for label, records in _controls(stage, held_out).items():
            ask(label, replace(answered[stage.models[-1]].request, records=records))
    return answered, choices


def _controls(stage: EvaluateStage, held_out: list[LampRecord]) -> dict[str, list[LampRecord]]:
    """Control -> its questions. Profiles are swapped among all of `held_out`, of which a control may ask a few."""
    made: dict[str, list[LampRecord]] = {}
    if "shuffled" in stage.controls:
        made["shuffled"] = shuffle_profiles(held_out, stage.seed)
    if "empty" in stage.controls:
        made["empty"] = empty_profiles(held_out)
    return {name: evenly(records, stage.control_questions) for name, records in made.items()}


def choice_notes(base_prompts: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """A sentence for each model that was asked by several prompts: which one counts, and why."""
    return tuple(
        f"{name} is asked by the prompt '{choice['chosen']}', the best on training questions: "
        + ", ".join(f"{style} {score:.3f}" for style, score in choice["training_scores"].items())
        for name, choice in base_prompts.items()
    )


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


def _write(folder: Path, label: str, asked: Asked) -> None:
    """Write the responses, and LaMP's predictions of each task."""
    scored = {question.key: question for question in asked.result.questions}
    lines = []
    for record, prompt, text in zip(asked.request.records, asked.prompts, asked.texts, strict=True):
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
    write_text(folder / "responses" / f"{label}.jsonl", "".join(lines))
    for task in dict.fromkeys(record.task for record in asked.request.records):
        write_predictions(folder / "predictions" / label / f"{task}.json", task, asked.result.answers(task))


def _show_samples(console: Console, context: StageContext, model: str) -> None:
    """Print one answered question per task."""
    page = Page(console, context.schema)
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
