"""PRMU's pairs beyond the chains stage's: the policy's own right and wrong responses, the same two for two users."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from tagpr_rl.config import PrmuStage
from tagpr_rl.prmu.training.preferences import read_pairs, write_pairs
from tagpr_rl.prmu.training.probes import copied, padded, slipped
from tagpr_rl.prompts.dataset import evenly
from tagpr_rl.prompts.rows import profile_texts, write_parquet
from tagpr_rl.reward.task import task_reward
from tagpr_rl.stages.context import StageContext
from tagpr_rl.stages.policy_samples import sampled_responses
from tagpr_rl.tags.grammar import final_answer, parse
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import LampRecord, PairRow, ParseStatus, TagprError

PAIRS = "pairs.parquet"
POLICY_MARGIN = 0.2
"""Least difference of the task reward between a policy's better and worse response."""
POLICY_PAIRS = 2
"""Most pairs from one question."""


def training_pairs(context: StageContext, stage: PrmuStage, out: Path) -> int:
    """Write what PRMU is trained on to `out`; returns the number of pairs. A resumed stage keeps what it began with."""
    if out.is_file():
        return len(read_pairs(out))
    rows = read_pairs(context.nearest("chains", reads=(PAIRS,)).root / PAIRS)
    if stage.policy_samples:
        rows += _policy_pairs(context, stage)
    form = context.schema, context.recipe.model.thought_prefilled
    drawn = _drawn(rows, stage.probe_fraction, f"probes/{stage.seed}")
    made = [probe for pair in drawn for probe in (copied(pair, *form), padded(pair, *form))]
    made += [
        slipped(pair, *form, late=bool(i % 2))
        for i, pair in enumerate(_drawn(rows, stage.slip_fraction, f"slips/{stage.seed}"))
    ]
    rows += [pair for pair in made if pair is not None]
    if stage.policy_samples or made:
        random.Random(f"pairs/{stage.seed}").shuffle(rows)
    write_pairs(out, rows)
    return len(rows)


def _drawn(rows: Sequence[PairRow], fraction: float, seed: str) -> list[PairRow]:
    return random.Random(seed).sample(rows, round(fraction * len(rows)))


def _policy_pairs(context: StageContext, stage: PrmuStage) -> list[PairRow]:
    recipe = context.recipe
    records = [record for record in context.dataset.train if record.gold is not None]
    questions = evenly(records, stage.policy_questions)
    texts = sampled_responses(context, stage.init, questions, stage.policy_samples, stage.seed)
    return pairs_of_samples(questions, texts, context.schema, prefilled=recipe.model.thought_prefilled, seed=stage.seed)


def pairs_of_samples(
    records: Sequence[LampRecord],
    texts: Sequence[Sequence[str]],
    schema: TagSchema,
    *,
    prefilled: bool = False,
    seed: int = 0,
) -> list[PairRow]:
    """Up to POLICY_PAIRS pairs of kind "wrong" per question, of the policy's responses `texts[i]` to `records[i]`.

    Two responses are drawn without a look at their rewards, and kept with the difference of their task rewards as
    probability (from POLICY_MARGIN on; a malformed response counts as 0). So the response of higher *expected* reward
    is chosen more often than rejected. Where golds are noisy, the best response against the rest would teach which
    gold is likeliest: in LaMP_3 an extreme score, when one between is nearer on average.
    """
    rng = random.Random(f"policy/{seed}")
    rows = []
    for record, responses in zip(records, texts, strict=True):
        scores: dict[str, float] = {}
        for text in sorted({text for text in responses if text.strip()}):
            good = parse(text, schema, prefilled=prefilled).status is ParseStatus.OK
            scores[text] = task_reward(record.task, final_answer(text), str(record.gold)) if good else 0.0
        pairs = [sorted(pair, key=scores.__getitem__, reverse=True) for pair in combinations(scores, 2)]
        rng.shuffle(pairs)
        gaps = [scores[better] - scores[worse] for better, worse in pairs]
        kept = [pair for pair, gap in zip(pairs, gaps, strict=True) if gap >= POLICY_MARGIN and rng.random() < gap]
        fields = record.id, record.task, record.user_id, "", record.input, profile_texts(record)
        rows += [PairRow(*fields, better, worse, "wrong") for better, worse in kept[:POLICY_PAIRS]]
    return rows


def shuffled_rows(source: Path, out: Path, seed: int) -> Path:
    """verl's prompt rows with another user's id and profile for PRMU (extra_info); the prompts stay. Returns `out`.

    Users of a task stand in a random circle and each lends to the one before, so nobody keeps their own.
    """
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(source).to_pylist()
    profiles: dict[tuple[str, str], Any] = {}
    for row in rows:
        info = row["extra_info"]
        profiles.setdefault((info["task"], info["user_id"]), info["profile_texts"])
    lender = circle(list(profiles), seed)
    for row in rows:
        info = row["extra_info"]
        task = info["task"]
        other = lender[task, info["user_id"]]
        row["extra_info"] = {**info, "user_id": other, "profile_texts": profiles[task, other]}
    write_parquet(out, rows)
    return out


def circle(users: Sequence[tuple[str, str]], seed: int) -> Mapping[tuple[str, str], str]:
    """(task, user) -> another user of the task. TagprError where a task has one user."""
    lender: dict[tuple[str, str], str] = {}
    for task in dict.fromkeys(task for task, _ in users):
        ring = sorted(user for other, user in users if other == task)
        if len(ring) < 2:
            raise TagprError(f"prmu_users: shuffled needs two users of {task} or more, and there is one; use own")
        random.Random(f"{seed}/{task}").shuffle(ring)
        lender |= {(task, user): ring[(i + 1) % len(ring)] for i, user in enumerate(ring)}
    return lender
