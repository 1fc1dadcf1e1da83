"""Prompts stage: a prompt within the limit for every record, as rows that verl reads."""

from __future__ import annotations

from tagpr_rl.files import write_json, write_parquet
from tagpr_rl.prompts.dataset import VALIDATION
from tagpr_rl.prompts.prompt import prompt_stats
from tagpr_rl.prompts.rows import prompt_schema, to_row
from tagpr_rl.prompts.tokens import ChatTokenizer
from tagpr_rl.stages.context import StageContext, StageResult


def run(context: StageContext) -> StageResult:
    """Write train.parquet, held_out.parquet and, if users are set aside for it, validation.parquet (reasoning prompts),
    and prompts.json (drops and lengths)."""
    context.clean()
    dataset = context.dataset
    dataset.embed()
    make = dataset.prompt_maker("reasoning", ChatTokenizer(context.nearest("model", reads=("hf",)).hf))
    facts = {}
    splits = {"train": dataset.train, "held_out": dataset.held_out}
    if dataset.validation:
        splits[VALIDATION] = dataset.validation
    for name, records in splits.items():
        prompts = [make(record) for record in records]
        rows = (to_row(record, prompt, i) for i, (record, prompt) in enumerate(zip(records, prompts, strict=True)))
        write_parquet(context.dir.root / f"{name}.parquet", rows, prompt_schema())
        facts[name] = prompt_stats(prompts)
    write_json(context.dir.root / "prompts.json", facts)
    names = (*(f"{name}.parquet" for name in splits), "prompts.json")
    metrics = {f"{split}/{key}": float(value) for split, stats in facts.items() for key, value in stats.items()}
    return StageResult(outputs=tuple(context.dir.root / name for name in names), metrics=metrics)
