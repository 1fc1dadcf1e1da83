"""Chains stage: makes tagged chains for SFT and preference pairs for PRMU from a teacher's answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from random import Random
from typing import Any

from rich.console import Console

from tagpr_rl.chains.build import ChainRow, build_chains
from tagpr_rl.chains.client.answers import AnswerCache
from tagpr_rl.chains.client.chat import Generator, ReplyStatus
from tagpr_rl.chains.client.usage import MeteredLabeller, MeteredTeacher
from tagpr_rl.chains.evidence import ProfilePool, ProfileSwap
from tagpr_rl.chains.facts import chain_facts
from tagpr_rl.chains.labellers.free_label import MAX_TOKENS, ScriptedFreeLabeller
from tagpr_rl.chains.models import Engine, Generators, keep_rules, labeller_for, teacher_for
from tagpr_rl.chains.pairs import build_pairs
from tagpr_rl.chains.storage import REJECTED, write_rejected
from tagpr_rl.config import ChainsStage, EndpointBlock, Recipe
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.files import write_json, write_parquet
from tagpr_rl.prompts.dataset import evenly
from tagpr_rl.prompts.tokens import ChatTokenizer
from tagpr_rl.stages.context import LazyRay, StageContext, StageResult
from tagpr_rl.types import LampRecord, TagprError


def run(context: StageContext) -> StageResult:
    """Write chains.parquet, pairs.parquet, rejected.parquet and chains.json (counts, reasons and label quality)."""
    stage = context.recipe.stages[context.name]
    assert isinstance(stage, ChainsStage)
    stage = with_own_weights(context, stage)
    with language_models(context.recipe, stage, context.start_ray, context.console) as models:
        return _run(context, stage, models)


def language_models(
    recipe: Recipe, stage: ChainsStage, start_ray: Callable[[], Any], console: Console | None = None
) -> Generators:
    """The models that the stage asks; one of kind vllm starts in the run's Ray session.

    It takes all devices. Of a teacher and a labeller that differ one ends when the other starts.
    """
    engines: list[Engine] = []

    def end_others() -> None:
        for engine in engines:
            engine.close()

    def make_engine(block: EndpointBlock, cache: AnswerCache, account: str) -> Engine:
        from tagpr_rl.backend.rollout.offline import OfflineGenerator

        start_ray()
        engine = OfflineGenerator(recipe, block, cache, account=account, console=console, before_start=end_others)
        engines.append(engine)
        return engine

    return Generators(recipe, stage, make_engine=make_engine, console=console)


def with_own_weights(context: StageContext, stage: ChainsStage) -> ChainsStage:
    """The stage with `teacher: self` replaced by a block of kind vllm on the weights of `init`."""
    if stage.init is None:
        return stage
    given = EndpointBlock(kind="self") if isinstance(stage.teacher, str) else stage.teacher
    own = {"kind": "vllm", "model": str(context.model_folder(stage.init)), "trained": True}
    if isinstance(stage.teacher, str):
        own |= {"max_tokens": context.recipe.data.prompt.max_response_tokens}
    return stage.model_copy(update={"teacher": given.model_copy(update=own)})


def _run(context: StageContext, stage: ChainsStage, models: Generators) -> StageResult:
    recipe, schema = context.recipe, context.schema
    context.clean()
    dataset, records = context.dataset, context.dataset.train
    tokenizer = ChatTokenizer(context.nearest("model", reads=("hf",)).hf)
    make = dataset.prompt_maker("reasoning", tokenizer)
    make_foreign = dataset.prompt_maker("reasoning", tokenizer, foreign=True)
    teacher = MeteredTeacher(teacher_for(recipe, models=models, schema=schema, stage=stage))
    labeller = MeteredLabeller(labeller_for(stage, models))
    rules = keep_rules(recipe, stage)
    asked = evenly(records, stage.questions)
    questions = with_empty_profiles(asked, stage.empty_profile_fraction, stage.seed)
    chains = build_chains(
        questions,
        [make(record) for record in questions],
        teacher,
        labeller,
        schema,
        rules,
        samples=stage.samples,
        seed=stage.seed,
        empty_prompts={r.id: make_foreign(replace(r, profile=())) for r in asked if TASKS[r.task].kind == "generation"},
        swap=ProfileSwap(ProfilePool(records, stage.seed), dataset.retriever(foreign=True), make_foreign),
    )
    require_budget(context.name, stage, teacher, labeller)
    write_rejected(context.dir.root, chains.rejected)  # first, so that `chains inspect` can show why none was kept
    if not chains.rows:
        raise TagprError(
            f"stage '{context.name}': no chain was kept; reasons: {dict(chains.counts)}; "
            f"`tagpr chains inspect {context.run.root}` shows them"
        )
    pairs = build_pairs(
        chains, records, make_foreign, teacher, labeller, schema, rules, max_pairs=stage.max_pairs, seed=stage.seed
    )
    require_budget(context.name, stage, teacher, labeller)
    write_parquet(context.dir.root / "chains.parquet", [_chain_row(row) for row in chains.rows])
    write_parquet(context.dir.root / "pairs.parquet", [asdict(pair) for pair in pairs])
    facts = chain_facts(chains, schema, rules, teacher, labeller)
    facts |= {"pairs": dict(Counter(pair.kind for pair in pairs))}
    for role, chosen in (("teacher", stage.teacher), ("labeller", stage.labeller)):
        if not isinstance(chosen, str) and chosen.kind in ("openai", "vllm"):
            facts[role]["spent"] = asdict(models.spent(role))
    write_json(context.dir.root / "chains.json", facts)
    names = ("chains.parquet", "pairs.parquet", "chains.json", REJECTED)
    metrics = {"kept": float(len(chains.rows)), "rejected": float(len(chains.rejected)), "pairs": float(len(pairs))}
    return StageResult(outputs=tuple(context.dir.root / name for name in names), metrics=metrics)


def require_budget(name: str, stage: ChainsStage, teacher: MeteredTeacher, labeller: MeteredLabeller) -> None:
    """TagprError if a model's budget ended before the last request. All answers stay in the cache."""
    left = {
        role: usage.count(ReplyStatus.BUDGET)
        for role, usage in (("teacher", teacher.usage), ("labeller", labeller.usage))
    }
    if any(left.values()) and not stage.accept_partial:
        raise TagprError(
            f"stage '{name}': the budget is spent; not asked: {left['teacher']} requests of the teacher, "
            f"{left['labeller']} of the labeller. All answers are kept: raise budget.tokens or budget.money and run "
            "again, or set accept_partial: true to go on with what there is"
        )


def with_empty_profiles(records: list[LampRecord], fraction: float, seed: int) -> list[LampRecord]:
    """The records, and a share of them again with an empty profile, so that the generic user is trained as well."""
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


@contextmanager
def free_labeller(recipe: Recipe, stage: ChainsStage, console: Console) -> Iterator[tuple[Generator, int]]:
    """Yield who labels steps in free words for `tagpr chains discover`, and its limit of tokens a reply.

    This is the language model that the stage names as labeller, or the scripted free labeller if it names none.
    """
    chosen = stage.labeller
    if isinstance(chosen, str) or chosen.kind == "scripted":
        yield ScriptedFreeLabeller(), MAX_TOKENS
        return
    with LazyRay(recipe) as start_ray, language_models(recipe, stage, start_ray, console) as models:
        yield models.generator_for(chosen, "labeller"), chosen.max_tokens
