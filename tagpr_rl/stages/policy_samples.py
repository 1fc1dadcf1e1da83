"""Responses that a policy of the run writes to many questions: made once, kept in a file, used by several stages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tagpr_rl.config import prompt_style
from tagpr_rl.files import sha256_file, sha256_json, write_text
from tagpr_rl.prompts.dataset import Dataset
from tagpr_rl.prompts.tokens import ChatTokenizer
from tagpr_rl.stages.context import StageContext
from tagpr_rl.types import LampRecord


def encoded_prompts(dataset: Dataset, folder: Path, model: str, records: Sequence[LampRecord]) -> list[list[int]]:
    """The prompts of the records as token ids, as the weights of stage `model` (in `folder`) were taught to read."""
    tokenizer = ChatTokenizer(folder)
    make = dataset.prompt_maker(prompt_style(dataset.recipe, model), tokenizer)
    return [tokenizer.encode(tokenizer.render(make(record).messages)) for record in records]


def sampled(
    engine: Any, prompts: Sequence[list[int]], n: int, *, seed: int, temperature: float = 1.0
) -> list[list[str]]:
    """`n` responses to each prompt. `engine` is a backend.generate.Engine."""
    # Seeded requests of one prompt would be equal: one call per sample, each with a seed of its own.
    calls = [engine(list(prompts), temperature=temperature, seed=1000 * seed + i) for i in range(n)]
    return [list(texts) for texts in zip(*calls, strict=True)]


def sampled_responses(
    context: StageContext, model: str, records: Sequence[LampRecord], n: int, seed: int
) -> list[tuple[str, ...]]:
    """`n` responses of the policy `model` to each record at temperature 1; written once per run and question set."""
    recipe = context.recipe
    folder = context.model_folder(model)
    weights = {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}
    facts = {"model": model, "weights": weights, "samples": n, "seed": seed}
    facts |= {"questions": [f"{record.task}/{record.id}" for record in records]}
    path = context.run.root / "policy_samples" / f"{model}_{sha256_json(facts)[:12]}.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["facts"] == facts:
            return [tuple(texts) for texts in found["responses"]]
    from tagpr_rl.backend.rollout.generate import Engine

    context.start_ray()
    prompts = encoded_prompts(context.dataset, folder, model, records)
    status = f"  {context.name}: {n} responses of {model} to {len(records)} questions"
    with context.console.status(status), Engine(recipe, folder) as engine:
        texts = sampled(engine, prompts, n, seed=seed)
    write_text(path, json.dumps({"facts": facts, "responses": texts}, ensure_ascii=False))
    return [tuple(row) for row in texts]
