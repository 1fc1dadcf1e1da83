"""Which questions a GRPO stage trains on: the prompts stage's rows, through the stage's own filter."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tagpr_rl.config import FilterBlock, GrpoStage
from tagpr_rl.files import write_json
from tagpr_rl.prompts.rows import write_parquet
from tagpr_rl.prompts.tokens import ChatTokenizer
from tagpr_rl.reward.task import task_reward
from tagpr_rl.stages.context import StageContext
from tagpr_rl.stages.prmu_pairs import shuffled_rows
from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import ParseStatus, TagprError

FILTER = "filter.json"
"""The rows a stage keeps; an interrupted stage goes on with the same ones."""

Row = Mapping[str, Any]


def training_rows(context: StageContext, stage: GrpoStage) -> tuple[Path, dict[str, int] | None]:
    """(parquet file that verl reads, rows left after each part of the filter; None without a filter).

    PRMU's shuffled users are drawn among all users, then the filter takes its rows.
    """
    import pyarrow.parquet as pq

    source = context.nearest("prompts", reads=("train.parquet",)).root / "train.parquet"
    shuffled = stage.uses_prmu and stage.prmu_users == "shuffled"
    target = context.dir.root / "train.parquet"
    rows = shuffled_rows(source, target, stage.seed) if shuffled else source
    prompt = context.recipe.data.prompt
    shorter = stage.max_prompt_tokens is not None and stage.max_prompt_tokens < prompt.max_tokens
    if stage.filter is None and not shorter:
        return rows, None
    chosen = context.dir.root / FILTER
    if not chosen.is_file():
        kept, counts = _choose(context, stage, pq.read_table(source).to_pylist(), shorter)
        write_json(chosen, {"counts": counts, "kept": kept})
    found = json.loads(chosen.read_text(encoding="utf-8"))
    if len(found["kept"]) < stage.prompts_per_step:
        steps = ", ".join(f"{name} {count}" for name, count in found["counts"].items())
        raise TagprError(
            f"stages.{context.name}.filter leaves {len(found['kept'])} questions ({steps}), fewer than "
            f"prompts_per_step={stage.prompts_per_step}; widen it"
        )
    write_parquet(target, [row for i, row in enumerate(pq.read_table(rows).to_pylist()) if i in set(found["kept"])])
    return target, found["counts"]


def _choose(
    context: StageContext, stage: GrpoStage, rows: Sequence[Row], shorter: bool
) -> tuple[list[int], dict[str, int]]:
    """(indices of the rows kept, rows left after each part of the filter)."""
    kept, counts = list(range(len(rows))), {"all": len(rows)}
    if shorter:
        count, limit = ChatTokenizer(context.model_folder(stage.init)).count, stage.max_prompt_tokens or 0
        kept = [i for i in kept if count(rows[i]["prompt"]) <= limit]
        counts["prompt_tokens"] = len(kept)
    if stage.filter is None:
        return kept, counts
    kept = keep(rows, kept, stage.filter, counts)
    if stage.filter.mixed is not None and kept:
        kept = _mixed(context, stage, rows, kept, stage.filter.mixed.samples)
        counts["mixed"] = len(kept)
    return kept, counts


def keep(rows: Sequence[Row], kept: Sequence[int], block: FilterBlock, counts: dict[str, int]) -> list[int]:
    """Indices of `kept` that pass tasks, profile size and share or number; `counts` gains what each part leaves.

    `rows` are verl's prompt rows (data.rows.to_row). Share and number take rows at even distances, so that tasks
    and users stay mixed.
    """
    found = list(kept)
    if block.tasks is not None:
        found = [i for i in found if rows[i]["extra_info"]["task"] in block.tasks]
        counts["tasks"] = len(found)
    if block.min_items is not None or block.max_items is not None:
        least, most = block.min_items or 0, block.max_items if block.max_items is not None else float("inf")
        found = [i for i in found if least <= len(rows[i]["extra_info"]["profile_texts"]) <= most]
        counts["profile_items"] = len(found)
    wanted = block.questions if block.share is None else round(block.share * len(found))
    if wanted is not None:
        if wanted < len(found):
            found = [found[i * len(found) // wanted] for i in range(wanted)]
        counts["questions"] = len(found)
    return found


def differ(scores: Sequence[float]) -> bool:
    """Whether responses to one question are neither all right nor all wrong, nor otherwise worth the same."""
    return max(scores) - min(scores) > 1e-9


def score_response(text: str, task: str, gold: str, schema: TagSchema, *, prefilled: bool) -> float:
    """task * format, as the reward has it."""
    parsed = parse(text, schema, prefilled=prefilled)
    if parsed.status is not ParseStatus.OK or parsed.trace is None:
        return 0.0
    return task_reward(task, parsed.trace.answer, gold)


def _mixed(
    context: StageContext, stage: GrpoStage, rows: Sequence[Row], kept: Sequence[int], samples: int
) -> list[int]:
    """Indices of `kept` to which the stage's start policy gives answers of different worth."""
    from tagpr_rl.backend.rollout.generate import Engine

    context.start_ray()
    recipe, folder = context.recipe, context.model_folder(stage.init)
    tokenizer = ChatTokenizer(folder)
    prompts = tokenizer.encode_many([tokenizer.render(rows[i]["prompt"]) for i in kept])
    asked = [ids for ids in prompts for _ in range(samples)]
    label = f"  {context.name}: {samples} answers to each of {len(kept)} questions, for the filter"
    with context.console.status(label), Engine(recipe, folder) as engine:
        texts = engine(asked, temperature=stage.temperature, seed=None)
    prefilled = recipe.model.thought_prefilled

    def score(text: str, row: Row) -> float:
        info = row["extra_info"]
        return score_response(text, info["task"], info["gold"], context.schema, prefilled=prefilled)

    return pick(kept, [score(text, rows[kept[n // samples]]) for n, text in enumerate(texts)], samples, differ)


def pick(
    kept: Sequence[int], scores: Sequence[float], samples: int, wanted: Callable[[Sequence[float]], bool]
) -> list[int]:
    """The indices whose `samples` consecutive scores are `wanted`."""
    assert len(scores) == samples * len(kept)
    return [i for n, i in enumerate(kept) if wanted(scores[n * samples : (n + 1) * samples])]
