"""Every recipe key has a sentence that explains it, and is set by a shipped recipe or by a test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from tagpr_rl.config import Recipe

ROOT = Path(__file__).resolve().parents[3]
MIN_WORDS = 4

# Allowances that shrink to nothing: a key that is documented or set may be taken off at any time.
UNDOCUMENTED = {
    "AlertLimits.prmu_rise",
    "AnswerBlock.generation_gain",
    "AnswerBlock.generation_good",
    "AnswerBlock.generation_least",
    "AnswerBlock.rating_tolerance",
    "BalanceBlock.max_per_user",
    "ChainsStage.keep",
    "ChainsStage.max_pairs",
    "ChainsStage.samples",
    "ChainsStage.seed",
    "DataBlock.prompt",
    "DataBlock.retrieval",
    "DataBlock.split",
    "DataBlock.tasks",
    "DataBlock.world",
    "DataStage.seed",
    "EndpointBlock.budget",
    "EndpointBlock.kind",
    "EndpointBlock.prices",
    "EndpointBlock.retries",
    "EndpointBlock.temperature",
    "EndpointBlock.timeouts",
    "EvaluateStage.control_questions",
    "EvaluateStage.models",
    "EvaluateStage.seed",
    "EvaluateStage.temperature",
    "FilterBlock.max_items",
    "FilterBlock.tasks",
    "GrpoStage.advantage",
    "GrpoStage.alerts",
    "GrpoStage.betas",
    "GrpoStage.clip_high",
    "GrpoStage.clip_low",
    "GrpoStage.group_size",
    "GrpoStage.init",
    "GrpoStage.keep_checkpoints",
    "GrpoStage.log",
    "GrpoStage.lr",
    "GrpoStage.lr_warmup_steps",
    "GrpoStage.max_grad_norm",
    "GrpoStage.micro_batch_size",
    "GrpoStage.prmu_timeout_s",
    "GrpoStage.prompts_per_step",
    "GrpoStage.seed",
    "GrpoStage.steps",
    "GrpoStage.temperature",
    "GrpoStage.weight_decay",
    "GrpoStage.weights",
    "KeepBlock.balance",
    "KeepBlock.evidence",
    "KeepBlock.max_steps",
    "KeepBlock.min_steps",
    "KeepBlock.near_duplicates",
    "LauncherBlock.region",
    "LauncherBlock.ssh_user",
    "ModelStage.seed",
    "NearDuplicatesBlock.shingle",
    "PlateauBlock.better",
    "PlateauBlock.patience",
    "PlateauBlock.window",
    "PricesBlock.completion",
    "PricesBlock.prompt",
    "PrmuStage.batch_size",
    "PrmuStage.centre",
    "PrmuStage.head_lr",
    "PrmuStage.individual_weight",
    "PrmuStage.init",
    "PrmuStage.keep_checkpoints",
    "PrmuStage.lr",
    "PrmuStage.max_items",
    "PrmuStage.policy_questions",
    "PrmuStage.seed",
    "PrmuStage.steps",
    "PrmuStage.user_dropout",
    "PrmuStage.warmup_steps",
    "PromptBlock.max_response_tokens",
    "PromptsStage.seed",
    "Recipe.budget",
    "Recipe.cluster",
    "Recipe.data",
    "Recipe.log",
    "Recipe.model",
    "Recipe.name",
    "Recipe.placement",
    "Recipe.platform",
    "Recipe.stages",
    "Recipe.training",
    "RetrievalBlock.k",
    "RetrievalBlock.method",
    "RetrievalBlock.seed",
    "RewardWeights.alpha",
    "RewardWeights.beta",
    "RewardWeights.gamma",
    "SftStage.batch_size",
    "SftStage.betas",
    "SftStage.keep_checkpoints",
    "SftStage.lr",
    "SftStage.max_grad_norm",
    "SftStage.seed",
    "SftStage.steps",
    "SftStage.warmup_steps",
    "SftStage.weight_decay",
    "StopBlock.plateau",
    "TaskAnswersBlock.LaMP_3",
    "TaskAnswersBlock.LaMP_4",
    "TaskAnswersBlock.LaMP_5",
    "TaskAnswersBlock.LaMP_6",
    "TaskAnswersBlock.LaMP_7",
    "WorldBlock.held_out_users",
    "WorldBlock.train_users",
}
UNSET = {
    "AlertLimits.entropy_fraction",
    "AlertLimits.flat_groups",
    "AlertLimits.probability_gap",
    "AlertLimits.task_fall",
    "LauncherBlock.ssh_user",
    "PrmuStage.max_epochs",
    "PrmuStage.user_shards",
    "SftStage.max_epochs",
    "StepLog.keep_responses",
    "StepLog.table_rows",
}


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models in an annotation: Recipe's stages and blocks, through unions, mappings and tuples."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models(part)


def all_models() -> list[type[BaseModel]]:
    seen: dict[type[BaseModel], None] = {}
    queue: list[type[BaseModel]] = [Recipe]
    while queue:
        model = queue.pop()
        if model not in seen:
            seen[model] = None
            for field in model.model_fields.values():
                queue += models(field.annotation)
    return list(seen)


KEYS = {
    f"{model.__name__}.{name}": field
    for model in all_models()
    for name, field in model.model_fields.items()
    if not (get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1)  # a stage's `kind`
}


def test_the_blocks_of_every_kind_are_walked() -> None:
    names = {key.partition(".")[0] for key in KEYS}
    assert {"Recipe", "DataBlock", "GrpoStage", "ChainsStage", "KeepBlock", "EndpointBlock", "PlatformBlock"} <= names


@pytest.mark.parametrize("key", sorted(set(KEYS) - UNDOCUMENTED))
def test_a_key_has_a_sentence(key: str) -> None:
    words = (KEYS[key].description or "").split()
    assert len(words) >= MIN_WORDS, f"{key}: {' '.join(words) or 'no docstring below it'}"


def keys_in(value: Any) -> Iterator[str]:
    """The keys of nested mappings; dotted ones (a sweep's) by their last part."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield str(name).rpartition(".")[2]
            yield from keys_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_in(inner)


@cache
def keys_of_recipes() -> frozenset[str]:
    files = [*(ROOT / "recipes").rglob("*.yaml")]
    return frozenset(key for path in files for key in keys_in(yaml.safe_load(path.read_text(encoding="utf-8"))))


@cache
def text_of_tests() -> str:
    files = [path for folder in ("tests", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]
    return "\n".join(path.read_text(encoding="utf-8") for path in files if path != Path(__file__).resolve())


def is_set(name: str) -> bool:
    """Whether a recipe has the key, or a test writes it as `"key": value`, `key: value`, `block.key=` or `key=`."""
    return name in keys_of_recipes() or bool(re.search(rf"(?<!\w){name}[\"']?(: |=(?!=))", text_of_tests()))


@pytest.mark.parametrize("key", sorted(set(KEYS) - UNSET))
def test_a_key_is_set_somewhere(key: str) -> None:
    assert is_set(key.partition(".")[2]), f"{key}: set by no recipe, test or bench; delete it or test it"


def test_an_unknown_key_is_not_set() -> None:
    assert not is_set("no_such_key_anywhere"[:11])
