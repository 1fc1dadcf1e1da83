"""`teacher: self`: an earlier stage's weights write the chains that the next SFT learns."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tagpr_rl.chains.models import teacher_for
from tagpr_rl.chains.teachers.interface import TrainedTeacher
from tagpr_rl.config import ChainsStage, EndpointBlock, Recipe, recipe_from_dict, upstream
from tagpr_rl.stages.chains import with_own_weights
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import TagprError


def recipe(**again: Any) -> Recipe:
    stages = {
        "data": {"kind": "data"},
        "model": {"kind": "model"},
        "chains": {"kind": "chains"},
        "sft": {"kind": "sft", "init": "model"},
        "again": {"kind": "chains", "teacher": "self", "init": "sft", "samples": 4} | again,
        "sft2": {"kind": "sft", "init": "sft"},
    }
    raw = {"name": "star", "data": {"prompt": {"max_response_tokens": 77}}, "stages": stages}
    return recipe_from_dict(raw, source="star.yaml")


def resolved(made: Recipe) -> ChainsStage:
    context: Any = SimpleNamespace(recipe=made, model_folder=lambda name: Path("/runs/star") / name)
    stage = made.stages["again"]
    assert isinstance(stage, ChainsStage)
    return with_own_weights(context, stage)


def test_the_weights_of_init_are_asked_with_their_own_prompts() -> None:
    block = resolved(recipe()).teacher
    assert isinstance(block, EndpointBlock)
    assert (block.kind, block.model, block.trained, block.max_tokens) == ("vllm", "/runs/star/sft", True, 77)
    own = resolved(recipe(teacher={"kind": "self", "temperature": 1.0, "max_tokens": 99})).teacher
    assert isinstance(own, EndpointBlock)
    assert (own.kind, own.temperature, own.max_tokens) == ("vllm", 1.0, 99)


def test_the_stage_s_own_teacher_counts_and_not_the_first_stage_s() -> None:
    made = recipe()
    models: Any = SimpleNamespace(generator_for=lambda block, role: SimpleNamespace(name=block.model))
    teacher = teacher_for(made, models=models, schema=default_schema(), stage=resolved(made))
    assert isinstance(teacher, TrainedTeacher) and teacher.name == "/runs/star/sft"


def test_the_next_sft_learns_the_new_chains() -> None:
    made = recipe()
    assert upstream(made, "again") == ("data", "model", "sft")
    assert upstream(made, "sft2") == ("data", "sft", "again")


@pytest.mark.parametrize(
    ("again", "says"),
    [
        ({"init": None}, "init belongs to teacher: self"),
        ({"teacher": "grounded"}, "init belongs to teacher: self"),
        ({"init": "sft2"}, "sft2"),
        ({"init": "data"}, "data"),
        ({"teacher": {"kind": "self", "model": "x"}}, "does not use model"),
        ({"labeller": {"kind": "self"}}, "labeller.kind is self"),
    ],
)
def test_mistakes(again: dict[str, Any], says: str) -> None:
    with pytest.raises(TagprError, match=says):
        recipe(**again)
