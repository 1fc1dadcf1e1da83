"""PRMU stage: makes pairs from chains and from the policy's own responses, and trains PRMU on the policy's devices."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from tagpr_rl.config import PrmuStage, prompt_style
from tagpr_rl.config.placement import prmu_processes
from tagpr_rl.config.platform import checkpointing
from tagpr_rl.data.people import with_one_question
from tagpr_rl.files import sha256_file, sha256_json, write_json, write_text
from tagpr_rl.model.fetch import copy_of, model_folder
from tagpr_rl.prmu.training.preferences import read_pairs, write_pairs
from tagpr_rl.prmu.training.probes import copied, malformed, padded, slipped
from tagpr_rl.prompts.dataset import Dataset, evenly
from tagpr_rl.prompts.rows import profile_texts
from tagpr_rl.prompts.tokens import ChatTokenizer
from tagpr_rl.report.cards.model_card import prmu_card
from tagpr_rl.reward.task import task_reward
from tagpr_rl.stages.common import (
    RESUMABLE,
    capped,
    resume_from,
    stage_notes,
    steps_within,
    tracking,
    wait_for,
)
from tagpr_rl.stages.context import StageContext, StageResult
from tagpr_rl.tags.grammar import final_answer, parse
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import LampRecord, PairRow, ParseStatus

PAIRS = "pairs.parquet"
BACKBONE = "backbone"
"""A copy of the hub's model while PRMU trains on a cluster, whose nodes do not share the hub's cache."""
POLICY_MARGIN = 0.2
"""Least difference of the task reward between a policy's better and worse response."""
POLICY_PAIRS = 2
"""Most pairs from one question."""
_SAME_NAME = (
    "batch_size", "lr", "head_lr", "individual_weight", "centre", "user", "identity", "user_dropout", "max_items",
    "eval_every", "patience", "seed", "dtype",
)  # fmt: skip


def run(context: StageContext) -> StageResult:
    """Train PRMU on the chains stage's pairs and, if the recipe asks for them, on the policy's own."""
    recipe, stage = context.recipe, context.recipe.stages[context.name]
    assert isinstance(stage, PrmuStage)
    context.guard_attempt()
    context.clean(*RESUMABLE, PAIRS, BACKBONE)
    pairs = context.dir.root / PAIRS
    examples = training_pairs(context, stage, pairs)
    steps = steps_within(stage.steps, stage.batch_size, examples, stage.max_epochs)
    settings = {
        "steps": steps,
        "micro_batch_size": stage.micro_batch_size or 0,
        "warmup": min(stage.warmup_steps, steps // 2),
        "device": recipe.platform.device,
        "recompute": checkpointing(recipe.platform, recipe.training),
        **{name: getattr(stage, name) for name in _SAME_NAME},
    }
    if stage.identity is None:
        single, n_people = with_one_question(context.dataset.train)
        settings["identity"] = 2 * len(single) <= n_people
    if stage.backbone is not None:
        backbone = model_folder(stage.backbone, f"stages.{context.name}.backbone")
        if backbone != Path(stage.backbone) and recipe.platform.ray_address is not None:
            backbone = copy_of(backbone, context.dir.root / BACKBONE)
    else:
        backbone = context.model_folder(stage.init)
    ray = context.start_ray()
    from tagpr_rl.backend.scoring.prmu_train import PrmuJob, run_prmu

    start = resume_from(context, backbone)
    job = PrmuJob(
        pairs=str(pairs.resolve()),
        backbone=str(backbone.resolve()),
        out=str((context.dir.root / "prmu").resolve()),
        settings=settings,
        tracking=tracking(context),
        threads=recipe.platform.threads,
        zero=stage.zero().model_dump() if stage.strategy == "deepspeed" else None,
        checkpoints=str(context.dir.checkpoints.resolve()),
        every=stage.save_every or 0,
        user_shards=stage.user_shards,
    )
    # Ray would start a task again from its first step, beside the rows that it has written.
    task = ray.remote(num_cpus=1, max_retries=0)(run_prmu).remote(prmu_processes(recipe.platform, stage), job)
    wait_for(context, task, steps, lambda row: f"accuracy {row.get('prmu/accuracy', 0):.2f}")
    figures: dict[str, float] = ray.get(task)
    write_json(context.dir.root / "prmu.json", figures)
    for left in (context.dir.checkpoints, context.dir.root / BACKBONE):
        shutil.rmtree(left, ignore_errors=True)  # the stage's result is in prmu/
    card = prmu_card(recipe, context.name, figures)
    write_text(context.dir.root / "prmu" / "README.md", card)
    outputs = (context.dir.root / "prmu", context.dir.root / "prmu.json", context.dir.metrics, pairs)
    first = [key for key in ("unseen/accuracy", "unseen/cross_profile", "unseen/shuffled") if key in figures]
    ordered = {key: figures[key] for key in (*first, *(key for key in figures if key not in first))}
    notes = (*stage_notes(context, start), *capped(steps, stage.steps, examples, stage.max_epochs))
    return StageResult(outputs=outputs, metrics=ordered, notes=notes)


def training_pairs(context: StageContext, stage: PrmuStage, out: Path) -> int:
    """Write PRMU's training pairs to `out`; returns their number. A resumed stage keeps the pairs that it started
    with."""
    if out.is_file():
        return len(read_pairs(out))
    rows = read_pairs(context.nearest("chains", reads=(PAIRS,)).root / PAIRS)
    if stage.policy_samples:
        rows += _policy_pairs(context, stage)
    schema = context.schema
    drawn = _drawn(rows, stage.probe_fraction, f"probes/{stage.seed}")
    made = [probe for pair in drawn for probe in (copied(pair, schema), padded(pair, schema))]
    made += [
        slipped(pair, schema, late=bool(i % 2))
        for i, pair in enumerate(_drawn(rows, stage.slip_fraction, f"slips/{stage.seed}"))
    ]
    made += [
        malformed(pair, schema, False, i)
        for i, pair in enumerate(_drawn(rows, stage.malformed_fraction, f"malformed/{stage.seed}"))
    ]
    rows += [pair for pair in made if pair is not None]
    if stage.policy_samples or made:
        random.Random(f"pairs/{stage.seed}").shuffle(rows)
    write_pairs(out, rows)
    return len(rows)


def _drawn(rows: Sequence[PairRow], fraction: float, seed: str) -> list[PairRow]:
    return random.Random(seed).sample(rows, round(fraction * len(rows)))


def _policy_pairs(context: StageContext, stage: PrmuStage) -> list[PairRow]:
    records = [record for record in context.dataset.train if record.gold is not None]
    questions = evenly(records, stage.policy_questions)
    texts = sampled_responses(context, stage.init, questions, stage.policy_samples, stage.seed)
    return pairs_of_samples(questions, texts, context.schema, seed=stage.seed)


def pairs_of_samples(
    records: Sequence[LampRecord],
    texts: Sequence[Sequence[str]],
    schema: TagSchema,
    *,
    prefilled: bool = False,
    seed: int = 0,
) -> list[PairRow]:
    """Up to POLICY_PAIRS pairs of kind "wrong" per question, of the policy's responses `texts[i]` to `records[i]`.

    Two responses are drawn independently of their rewards. Their pair is kept with a probability equal to the
    difference of their task rewards, if that is at least POLICY_MARGIN; a malformed response counts as 0. So the
    response of higher *expected* reward is chosen more often than rejected. Pairs of the best response against the rest
    would teach the most probable gold if golds are noisy: in LaMP_3 an extreme score, although a score between is
    nearer on average.
    """
    rng = random.Random(f"policy/{seed}")
    rows = []
    for record, responses in zip(records, texts, strict=True):
        scores: dict[str, float] = {}
        for text in sorted({text for text in responses if text.strip()}):
            good = parse(text, schema, prefilled=prefilled).status is ParseStatus.OK
            scores[text] = (
                task_reward(record.task, final_answer(text, prefilled=prefilled), str(record.gold)) if good else 0.0
            )
        pairs = [sorted(pair, key=scores.__getitem__, reverse=True) for pair in combinations(scores, 2)]
        rng.shuffle(pairs)
        gaps = [scores[better] - scores[worse] for better, worse in pairs]
        kept = [pair for pair, gap in zip(pairs, gaps, strict=True) if gap >= POLICY_MARGIN and rng.random() < gap]
        fields = record.id, record.task, record.user_id, "", record.input, profile_texts(record)
        rows += [PairRow(*fields, better, worse, "wrong") for better, worse in kept[:POLICY_PAIRS]]
    return rows


def sampled_responses(
    context: StageContext, model: str, records: Sequence[LampRecord], n: int, seed: int
) -> list[tuple[str, ...]]:
    """`n` responses of the policy `model` to each record at temperature 1; stored once per run and set of prompts."""
    recipe = context.recipe
    folder = context.model_folder(model)
    weights = {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}
    facts = {"model": model, "weights": weights, "samples": n, "seed": seed}
    prompts = encoded_prompts(context.dataset, folder, model, records)
    facts |= {"prompts": sha256_json(prompts), "max_response_tokens": recipe.data.prompt.max_response_tokens}
    facts |= {"questions": [f"{record.task}/{record.id}" for record in records]}
    path = context.run.root / "policy_samples" / f"{model}_{sha256_json(facts)[:12]}.json"
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["facts"] == facts:
            return [tuple(texts) for texts in stored["responses"]]
    from tagpr_rl.backend.rollout.generate import Engine

    context.start_ray()
    status = f"  {context.name}: {n} responses of {model} to {len(records)} questions"
    with context.console.status(status), Engine(recipe, folder) as engine:
        texts = sampled(engine, prompts, n, seed=seed)
    write_text(path, json.dumps({"facts": facts, "responses": texts}, ensure_ascii=False))
    return [tuple(row) for row in texts]


def encoded_prompts(dataset: Dataset, folder: Path, model: str, records: Sequence[LampRecord]) -> list[list[int]]:
    """The prompts of the records as token ids, in the style on which the weights of stage `model` (in `folder`) were
    trained."""
    style = prompt_style(dataset.recipe, model)
    tokenizer = ChatTokenizer(folder, style)
    make = dataset.prompt_maker(style, tokenizer)
    return [tokenizer.encode(tokenizer.render(make(record).messages)) for record in records]


def sampled(
    engine: Any, prompts: Sequence[list[int]], n: int, *, seed: int, temperature: float = 1.0
) -> list[list[str]]:
    """`n` responses to each prompt. `engine` is a backend.rollout.generate.Engine."""
    texts = engine([ids for ids in prompts for _ in range(n)], temperature=temperature, seed=seed)
    return [texts[first : first + n] for first in range(0, len(texts), n)]
