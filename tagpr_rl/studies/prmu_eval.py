"""Measures a finished PRMU stage on users that no training has seen (`tagpr study prmu`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tagpr_rl.config import PrmuStage, Recipe
from tagpr_rl.eval.metrics import paired_difference, task_mean
from tagpr_rl.files import write_json, write_text
from tagpr_rl.prmu.accuracy import RawScore, evaluate, mean, own, pair_wins, per_user_macro, shuffled, wins
from tagpr_rl.prmu.quality import auc_within, best_of, calibration, correlation_within, third_users, truncated, votes
from tagpr_rl.prmu.serving.requests import ScoreRequest
from tagpr_rl.prmu.training.probes import copying, padding, spoiling
from tagpr_rl.prompts.rows import circle, profile_texts
from tagpr_rl.report.cards.prmu_page import prmu_page
from tagpr_rl.reward.task import task_reward
from tagpr_rl.run.layout import RunDir
from tagpr_rl.stages.context import LazyRay, StageContext
from tagpr_rl.studies.prmu_material import Material, finished_prmu, gather
from tagpr_rl.tags.grammar import final_answer
from tagpr_rl.types import PairRow, TagprError

SIZES = (0, 1, 2, 4, 8, 16)
"""Profile sizes of the cold-start curve. Sizes above the longest profile are left out."""
FORMAT = 1


def prmu_eval(
    recipe: Recipe,
    run: RunDir,
    name: str | None,
    *,
    questions: int = 400,
    samples: int = 8,
    console: Console | None = None,
) -> Path:
    """Measure the PRMU of stage `name` (None = the recipe's first); writes `prmu_eval/<stage>.json` and `.html`.

    `questions`: approximate number of held-out questions; a user's questions are taken all or none. `samples`: number
    of responses to each, for best-of-N; a power of 2. Returns the JSON file's path. TagprError if the stage is not
    finished or is no PRMU stage."""
    console = console or Console()
    stages = [other for other, stage in recipe.stages.items() if isinstance(stage, PrmuStage)]
    if not stages:
        raise TagprError(f"run {run.root}: its recipe has no stage of kind prmu")
    name = name or stages[0]
    if name not in recipe.stages:
        raise TagprError(f"--stage {name}: no such stage; PRMU stages are {', '.join(stages)}")
    if samples < 2 or samples & (samples - 1):
        raise TagprError(f"--samples {samples}: use a power of 2 (2, 4, 8, ...)")
    started = time.monotonic()
    with LazyRay(recipe) as start_ray:
        context = StageContext(recipe, run, name, console, start_ray)
        folder = finished_prmu(recipe, context)
        stage = recipe.stages[name]
        assert isinstance(stage, PrmuStage)
        material = gather(context, stage, questions=questions, samples=samples)
        start_ray()
        from tagpr_rl.backend.scoring.prmu_actor import RemoteScores

        status = f"  {name}: scoring"
        with (
            console.status(status),
            RemoteScores(folder, recipe.platform.device, recipe.platform.threads) as raw,
        ):
            facts = measure(raw, material, context, seed=stage.seed)
    facts = {
        "format": FORMAT, "run": recipe.name, "stage": name, "user": stage.user, **facts,
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    path = run.prmu_eval / f"{name}.json"
    write_json(path, facts)
    write_text(path.with_suffix(".html"), prmu_page(facts))
    return path


def measure(raw: RawScore, material: Material, context: StageContext, *, seed: int = 0) -> dict[str, Any]:
    """All figures, computed from raw scores. Intervals are [value, low, high], 95 % bootstrap over users."""
    facts: dict[str, Any] = {
        "training_users": evaluate(raw, material.seen, material.unseen, seed=seed),
        "held_out": held_out(raw, material.held_out, seed),
        "policy": held_out(raw, material.policy, seed),
        "user_only": user_only(raw, material.user_only, seed) | {"checked_by_rules": material.user_only_checked},
        "cold_start": cold_start(raw, material, seed),
        "best_of_n": best_of_n(raw, material, seed),
        "probes": {
            name: probe(raw, material.held_out, context.schema)
            for name, probe in (("padding", padding), ("copying", copying), ("spoiling", spoiling))
        },
    }
    return facts


def interval(values: Sequence[float], users: Sequence[str]) -> list[float]:
    """[mean, low, high] over users."""
    return list(task_mean(values, ["all"] * len(values), users)) if values else []


def held_out(raw: RawScore, pairs: Sequence[PairRow], seed: int) -> dict[str, Any]:
    """Pairwise accuracy with controls, by kind and task, and calibration; {} without pairs."""
    if not pairs:
        return {}
    scores = raw([request for pair in pairs for request in own(pair)])
    won = wins(scores[0::2], scores[1::2])
    users = [pair.user_id for pair in pairs]
    generic = pair_wins(raw, [(a.generic(), b.generic()) for a, b in map(own, pairs)])
    difference = [w - g for w, g in zip(won, generic, strict=True)]
    facts: dict[str, Any] = {
        "pairs": len(pairs),
        "users": len(set(users)),
        "accuracy": interval(won, users),
        "user_macro": per_user_macro(users, won),
        "generic": interval(generic, users),
        "above_generic": interval(difference, users),
        "calibration": calibration([c - r for c, r in zip(scores[0::2], scores[1::2], strict=True)]),
        "won": {
            f"{pair.task}/{pair.record_id}/{pair.kind}/{i}": [pair.user_id, win]
            for i, (pair, win) in enumerate(zip(pairs, won, strict=True))
        },
    }
    for what in ("kind", "task"):
        for value in sorted({getattr(pair, what) for pair in pairs}):
            chosen = [i for i, pair in enumerate(pairs) if getattr(pair, what) == value]
            facts.setdefault(f"by_{what}", {})[value] = {
                "pairs": len(chosen),
                "accuracy": interval([won[i] for i in chosen], [users[i] for i in chosen]),
                "generic": mean([generic[i] for i in chosen]),
            }
    cross = [pair for pair in pairs if pair.kind == "cross_profile"]
    if requests := shuffled(cross, seed):
        facts["shuffled"] = mean(pair_wins(raw, requests))
    return facts


def user_only(raw: RawScore, pairs: Sequence[PairRow], seed: int) -> dict[str, Any]:
    """Pairs that differ only in the user, scored for the own user, for a third one, and for nobody (exactly .5)."""
    if not pairs:
        return {"pairs": 0}
    users = [pair.user_id for pair in pairs]
    requests, sources = third_users(pairs, seed)
    return {
        "pairs": len(pairs),
        "users": len(set(users)),
        "own": interval(pair_wins(raw, [own(pair) for pair in pairs]), users),
        "shuffled": interval(pair_wins(raw, requests), [pair.user_id for pair in sources]),
        "generic": mean(pair_wins(raw, [(a.generic(), b.generic()) for a, b in map(own, pairs)])),
    }


def cold_start(raw: RawScore, material: Material, seed: int, most: int = 300) -> list[dict[str, Any]]:
    """Accuracy as a function of profile size, on at most `most` pairs that only the user tells apart."""
    source = material.user_only or [pair for pair in material.held_out if pair.kind == "cross_profile"]
    pairs = [source[i * len(source) // most] for i in range(most)] if len(source) > most else list(source)
    if not pairs:
        return []
    longest = max(len(pair.profile_texts) for pair in pairs)
    rows = []
    for size in [size for size in SIZES if size < longest] + [longest]:
        won = pair_wins(raw, [own(pair) for pair in truncated(pairs, size, seed)])
        rows.append({"items": size, "accuracy": interval(won, [pair.user_id for pair in pairs])})
    return rows


def best_of_n(raw: RawScore, material: Material, seed: int) -> dict[str, Any]:
    """Task score of the response ranked first by PRMU and by rankings that PRMU must beat, and correlations."""
    records, texts = material.questions, material.responses
    n = len(texts[0])
    tasks = [
        [task_reward(record.task, final_answer(text), str(record.gold)) for text in row]
        for record, row in zip(records, texts, strict=True)
    ]
    profiles = {(record.task, record.user_id): profile_texts(record) for record in records}
    lender = circle(list(profiles), seed)
    requests: dict[str, list[list[ScoreRequest]]] = {"prmu": [], "shuffled": [], "generic": []}
    for record, row in zip(records, texts, strict=True):
        other = lender[record.task, record.user_id]
        for_user = [ScoreRequest(record.user_id, profile_texts(record), record.input, text) for text in row]
        for_other = [ScoreRequest(other, profiles[record.task, other], record.input, text) for text in row]
        requests["prmu"].append(for_user)
        requests["shuffled"].append(for_other)
        requests["generic"].append([request.generic() for request in for_user])
    rankings = {name: _in_rows(raw, rows, n) for name, rows in requests.items()}
    lengths = [[float(len(text.split())) for text in row] for row in texts]
    rankings["longest"] = lengths
    rankings["majority"] = [votes([final_answer(text) for text in row]) for row in texts]
    rankings["oracle"] = tasks
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= n]
    keys = [f"{record.task}/{record.id}" for record in records]
    users = {key: record.user_id for key, record in zip(keys, records, strict=True)}
    kinds = {key: record.task for key, record in zip(keys, records, strict=True)}
    plain = dict(zip(keys, map(mean, tasks), strict=True))
    facts: dict[str, Any] = {"n": n, "questions": len(records), "sizes": sizes, "rankings": {}}
    for name, ranking in rankings.items():
        picked = {size: _picks(tasks, ranking, size) for size in sizes}
        gain = paired_difference(dict(zip(keys, picked[n], strict=True)), plain, users, tasks=kinds)
        curve = [_score(picked[size], kinds.values(), users.values())[0] for size in sizes]
        facts["rankings"][name] = {"score": curve, "gain": list(gain)}
    auc, compared = auc_within(rankings["prmu"], tasks)
    facts["correlation"] = {
        "task_score": correlation_within(rankings["prmu"], tasks),
        "length": correlation_within(rankings["prmu"], lengths),
        "task_score_and_length": correlation_within(tasks, lengths),
        "auc": auc,
        "auc_pairs": compared,
    }
    facts["gains"] = {
        key: [p - plain[key], users[key], kinds[key]]
        for key, p in zip(keys, _picks(tasks, rankings["prmu"], n), strict=True)
    }
    return facts


def _in_rows(raw: RawScore, rows: Sequence[Sequence[ScoreRequest]], n: int) -> list[list[float]]:
    flat = raw([request for row in rows for request in row])
    return [flat[i : i + n] for i in range(0, len(flat), n)]


def _picks(tasks: Sequence[Sequence[float]], ranking: Sequence[Sequence[float]], size: int) -> list[float]:
    return [best_of(t, r, size) for t, r in zip(tasks, ranking, strict=True)]


def _score(values: Sequence[float], tasks: Any, users: Any) -> tuple[float, float, float]:
    return task_mean(values, list(tasks), list(users))
