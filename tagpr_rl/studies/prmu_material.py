"""The pairs and sampled responses that `tagpr study prmu` measures on, of users held out from every training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tagpr_rl.chains.build import build_chains
from tagpr_rl.chains.evidence import ProfilePool, ProfileSwap
from tagpr_rl.chains.labellers.label import ScriptedLabeller
from tagpr_rl.chains.models import keep_rules, teacher_for
from tagpr_rl.chains.pairs import build_pairs
from tagpr_rl.config import ChainsStage, PrmuStage, Recipe
from tagpr_rl.data.world.rules import world_rules
from tagpr_rl.prmu.training.preferences import check_leakage, read_pairs, split_by_user, user_only_pairs
from tagpr_rl.prompts.rows import profile_texts
from tagpr_rl.prompts.tokens import ChatTokenizer
from tagpr_rl.run.layout import stage_dir
from tagpr_rl.stages.context import StageContext
from tagpr_rl.stages.prmu import PAIRS, pairs_of_samples, sampled_responses
from tagpr_rl.tags.grammar import final_answer
from tagpr_rl.types import LampRecord, PairRow, TagprError

FREE_TEACHERS = ("scripted", "heuristic", "grounded", "auto")
"""Teachers that cost nothing, so that they may also answer held-out questions."""


@dataclass(frozen=True, slots=True)
class Material:
    """All pairs and responses that are scored."""

    seen: tuple[PairRow, ...]
    """Pairs from other questions of training users."""
    unseen: tuple[PairRow, ...]
    """Pairs of users that training never shows. Early stopping was decided on them."""
    held_out: tuple[PairRow, ...]
    """Pairs of chains for users of the held-out split. No decision was based on them."""
    policy: tuple[PairRow, ...]
    """Pairs for the same users from the policy's own responses: a right one against a wrong one."""
    user_only: tuple[PairRow, ...]
    """Held-out pairs that differ only in the user."""
    user_only_checked: bool
    """Whether the rules of the embedded world confirm that each user prefers the chosen response."""
    questions: tuple[LampRecord, ...]
    responses: tuple[tuple[str, ...], ...]
    """The policy's N responses to each question."""


def gather(context: StageContext, stage: PrmuStage, *, questions: int, samples: int) -> Material:
    """Make or read the material for the PRMU stage of `context`, which must be finished."""
    recipe = context.recipe
    own = context.earlier(context.name, reads=("prmu",)).root
    trained_on = own / PAIRS if (own / PAIRS).is_file() else context.nearest("chains", reads=(PAIRS,)).root / PAIRS
    split = split_by_user(read_pairs(trained_on), seed=stage.seed)
    records = [record for record in context.dataset.held_out if record.gold is not None]
    chosen = whole_users(records, questions)
    responses = sampled_responses(context, stage.init, chosen, samples, stage.seed)
    held_out = _held_out_pairs(context, chosen)
    if recipe.data.split == "user":
        check_leakage(split.train, held_out)
    source = held_out or split.unseen
    both = {(row.task, row.user_id): row.profile_texts for row in source}
    both |= {(record.task, record.user_id): profile_texts(record) for record in chosen}
    user_only = user_only_pairs(source, both)
    by_user = {(record.task, record.user_id): record for record in chosen}
    checked = recipe.data.lamp_dir is None and bool(held_out)
    if checked:
        user_only = _only_true(user_only, by_user)
    policy = pairs_of_samples(chosen, responses, context.schema)
    return Material(
        split.seen,
        split.unseen,
        tuple(held_out),
        tuple(policy),
        tuple(user_only),
        checked,
        tuple(chosen),
        tuple(responses),
    )


def whole_users(records: Sequence[LampRecord], questions: int) -> list[LampRecord]:
    """All questions of evenly spread users, about `questions` in total. Whole users, since a pair needs two of them."""
    users = list(dict.fromkeys(record.user_id for record in records))
    most = max(2, round(len(users) * questions / max(1, len(records))))
    chosen = set(users) if most >= len(users) else {users[i * len(users) // most] for i in range(most)}
    return [record for record in records if record.user_id in chosen]


def _held_out_pairs(context: StageContext, records: Sequence[LampRecord]) -> list[PairRow]:
    """Cross-profile and no-profile pairs of the held-out users, by the recipe's teacher without mistakes on purpose;
    none if asking the teacher costs something."""
    recipe, schema = context.recipe, context.schema
    stage = next(s for s in recipe.stages.values() if isinstance(s, ChainsStage))
    if stage.teacher not in FREE_TEACHERS:
        return []
    tokenizer = ChatTokenizer(context.nearest("model", reads=("hf",)).hf)
    dataset = context.dataset
    make = dataset.prompt_maker("reasoning", tokenizer)
    make_foreign = dataset.prompt_maker("reasoning", tokenizer, foreign=True)
    teacher, rules = teacher_for(recipe, error_rate=0.0), keep_rules(recipe, stage)
    labeller = ScriptedLabeller()
    swap = ProfileSwap(ProfilePool(records, stage.seed), dataset.retriever(foreign=True), make_foreign)
    chains = build_chains(records, [make(record) for record in records], teacher, labeller, schema, rules, swap=swap)
    return build_pairs(
        chains,
        records,
        make_foreign,
        teacher,
        labeller,
        schema,
        rules,
        kinds=("cross_profile", "no_profile"),
        seed=stage.seed,
    )


def _only_true(rows: Sequence[PairRow], records: Mapping[tuple[str, str], LampRecord]) -> list[PairRow]:
    """The user-only pairs in which each user's profile makes the chosen response more probable, by the world's rules.

    Two consecutive rows belong together (`user_only_pairs`), and both are kept or dropped.
    """
    rules = world_rules()
    pairs: list[PairRow] = []
    for row, swapped in zip(rows[::2], rows[1::2], strict=True):
        good = True
        for side in (row, swapped):
            items = [item.fields for item in records[side.task, side.user_id].profile]
            try:
                spread = rules[side.task].posterior(side.question, items)
            except AssertionError:  # no answer to the other user's question agrees with this user's items
                spread = {}
            chosen, rejected = (spread.get(final_answer(text), 0.0) for text in (side.chosen, side.rejected))
            good = good and chosen > rejected
        pairs += [row, swapped] if good else []
    return pairs


def finished_prmu(recipe: Recipe, context: StageContext) -> Path:
    """The folder of the trained PRMU. TagprError if the stage is no PRMU stage or not finished."""
    if not isinstance(recipe.stages[context.name], PrmuStage):
        raise TagprError(f"--stage {context.name} is of kind {recipe.stages[context.name].kind}; name a prmu stage")
    return (stage_dir(recipe, context.run, context.name).root / "prmu").resolve()
