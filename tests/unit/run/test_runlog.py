"""A run's id and steps at its trackers, and what never goes there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagpr_rl.config import load_recipe
from tagpr_rl.run.layout import RunDir
from tagpr_rl.run.trackers import StepGate, step_offset, tracker_id, without_secrets
from tagpr_rl.types import TagprError

SMOKE = Path(__file__).resolve().parents[3] / "recipes" / "smoke.yaml"


def test_a_run_has_one_id_for_good_and_another_run_another(tmp_path: Path) -> None:
    first, second = RunDir(tmp_path / "a"), RunDir(tmp_path / "b")
    assert tracker_id(first) == tracker_id(RunDir(tmp_path / "a")) != tracker_id(second)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"id": 3}', '{"id": "a b"}', '{"id": "../x"}'])
def test_a_damaged_id_is_an_error_not_a_second_run(tmp_path: Path, text: str) -> None:
    run = RunDir(tmp_path)
    run.tracking.write_text(text)
    with pytest.raises(TagprError, match=r"tracking\.json does not hold the run's id"):
        tracker_id(run)


def test_global_steps_are_added_up_over_the_training_stages() -> None:
    recipe = load_recipe(SMOKE)  # base 30, sft 120, prmu 20, guided 3, explore 4 (which stops after 2)
    actual = {name: step_offset(recipe, name) for name in recipe.stages}
    assert actual == {
        "data": 0, "model": 0, "prompts": 0, "base": 0, "chains": 30, "sft": 30, "first": 150, "prmu": 150,
        "guided": 170, "explore": 173, "eval": 177,
    }  # fmt: skip


def test_a_step_passes_once_and_never_backwards_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "wandb_last_step"
    gate = StepGate(path)
    assert [gate.admit(step) for step in (0, 1, 1, 3, 2)] == [True, True, False, True, False]
    again = StepGate(path)
    assert [again.admit(step) for step in (2, 3, 4)] == [False, False, True]
    path.write_text("")  # a lost count lets everything through again
    assert StepGate(path).admit(1)


def test_secrets_are_taken_out_and_token_counts_are_not() -> None:
    config = {
        "api_key": "k", "hf_token": "t", "aws": {"secret_access_key": "s", "aws_access_key_id": "i"},
        "max_tokens": 192, "pad_token": "<pad>", "token": 3, "urls": ["https://me:pw@host/x", "s3://bucket/a"],
        "WANDB_API_KEY": "k", "password": "p",
    }  # fmt: skip
    assert without_secrets(config) == {
        "api_key": "(removed)", "hf_token": "(removed)",
        "aws": {"secret_access_key": "(removed)", "aws_access_key_id": "(removed)"},
        "max_tokens": 192, "pad_token": "<pad>", "token": 3, "urls": ["https://host/x", "s3://bucket/a"],
        "WANDB_API_KEY": "(removed)", "password": "(removed)",
    }  # fmt: skip
