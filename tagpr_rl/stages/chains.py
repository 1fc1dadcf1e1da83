"""Chains stage: teacher -> segment -> label -> keep; the tagged SFT set and PRMU's pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from random import Random

from tagpr_rl.chains.build import ChainRow, ChainSet, build_chains
from tagpr_rl.chains.label import ScriptedLabeller
from tagpr_rl.chains.pairs import build_pairs
from tagpr_rl.config import ChainsStage
from tagpr_rl.data.tokens import ChatTokenizer
from tagpr_rl.paths import write_json
from tagpr_rl.stages.context import StageContext, StageResult
from tagpr_rl.stages.records import TRAIN, load_split, prompt_maker, write_parquet
from tagpr_rl.stages.teachers import keep_rules, teacher_for
from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import LampRecord, TagprError


def run(context: StageContext) -> StageResult:
    """Write chains.parquet, pairs.parquet and chains.json (what was kept, what not, and why)."""
    recipe, schema = context.recipe, context.schema
    stage = recipe.stages[context.name]
    assert isinstance(stage, ChainsStage)
    context.clean()
    records = load_split(recipe, context.nearest("data", reads=("lamp",)).root, TRAIN)
    tokenizer = ChatTokenizer(context.nearest("model", reads=("hf",)).hf)
    make = prompt_maker(recipe, schema, "reasoning", tokenizer)
    teacher, labeller, rules = teacher_for(recipe), ScriptedLabeller(), keep_rules(recipe, stage)
    asked = with_empty_profiles(records, stage.empty_profile_fraction, stage.seed)
    chains = build_chains(
        asked,
        [make(record) for record in asked],
        teacher,
        labeller,
        schema,
        rules,
        samples=stage.samples,
        seed=stage.seed,
        empty_prompts={r.id: make(replace(r, profile=())) for r in records if r.task in ("LaMP_4", "LaMP_5", "LaMP_7")},
    )
    if not chains.rows:
        raise TagprError(f"stage '{context.name}': no chain was kept; reasons: {dict(chains.counts)}")
    pairs = build_pairs(
        chains, records, make, teacher, labeller, schema, rules, max_pairs=stage.max_pairs, seed=stage.seed
    )
    write_parquet(context.dir.root / "chains.parquet", [_chain_row(row) for row in chains.rows])
    write_parquet(context.dir.root / "pairs.parquet", [asdict(pair) for pair in pairs])
    facts = chain_facts(chains, schema) | {"pairs": dict(Counter(pair.kind for pair in pairs))}
    write_json(context.dir.root / "chains.json", facts)
    names = ("chains.parquet", "pairs.parquet", "chains.json")
    metrics = {"kept": float(len(chains.rows)), "rejected": float(len(chains.rejected)), "pairs": float(len(pairs))}
    return StageResult(outputs=tuple(context.dir.root / name for name in names), metrics=metrics)


def with_empty_profiles(records: list[LampRecord], fraction: float, seed: int) -> list[LampRecord]:
    """The records, a share of them a second time without a profile, so that the generic user is taught too."""
    chosen = Random(f"empty/{seed}").sample(records, int(fraction * len(records)))
    return [*records, *(replace(record, profile=()) for record in chosen if record.profile)]


def _chain_row(row: ChainRow) -> dict[str, object]:
    return {
        "record_id": row.record_id,
        "task": row.task,
        "user_id": row.user_id,
        "messages": [dict(message) for message in row.messages],
        "response": row.response,
        "answer": row.answer,
        "correct": row.correct,
        "sample": row.sample,
    }


def chain_facts(chains: ChainSet, schema: TagSchema) -> dict[str, object]:
    """Counts for the report: kept, rejected by reason, tags, steps per chain, kappa."""
    tags: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    for row in chains.rows:
        trace = parse(row.response, schema).trace
        assert trace is not None, "a kept chain parses"
        tags.update(step.tag for step in trace.steps)
        lengths[len(trace.steps)] += 1
    return {
        "kept": len(chains.rows),
        "kept_wrong": chains.counts["kept_wrong"],
        "rejected": dict(Counter(item.reason.value for item in chains.rejected)),
        "tags": {name: tags[name] for name in schema.names},
        "steps_per_chain": {str(n): lengths[n] for n in sorted(lengths)},
        "kappa": chains.kappa,
    }
