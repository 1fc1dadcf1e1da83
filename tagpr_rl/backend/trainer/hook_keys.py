"""Keys of verl's config that this project's hooks read; verl itself reads few of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tagpr_rl.config import GrpoStage, Recipe


def stop_keys(stage: GrpoStage) -> dict[str, Any]:
    """The stage's stop rules, which `hooks.stop` reads; empty if the stage has none."""
    keys: dict[str, Any] = {}
    for key, value in (stage.stop.model_dump(exclude_none=True) if stage.stop is not None else {}).items():
        below = value.items() if isinstance(value, dict) else ()
        keys |= {f"+trainer.stop.{key}.{name}": item for name, item in below} or {f"+trainer.stop.{key}": value}
    return keys


def validation_keys(stage: GrpoStage, train: Path, validation: Path | None) -> dict[str, Any]:
    """The questions of verl's validation, all at once; it answers greedily. verl needs a file without one, too."""
    if stage.validation is None:
        return {"data.val_files": str(train), "data.val_max_samples": 1}
    return {
        "data.val_files": str(validation),
        "data.validation_shuffle": False,
        "actor_rollout_ref.rollout.val_kwargs.temperature": 0.0,
        "actor_rollout_ref.rollout.val_kwargs.n": 1,
    }


def reward_keys(recipe: Recipe, stage: GrpoStage, saved: Path | None) -> dict[str, Any]:
    """What scores responses and turns rewards into advantages; `saved`: responses in the place of new ones."""
    schema_file = str(recipe.schema_file.resolve()) if recipe.schema_file is not None else None
    keys: dict[str, Any] = {
        "reward.num_workers": 0,  # agent-loop workers call the scoring actors themselves (rollout.agent_loop)
        "reward.reward_model.enable": False,
        "+reward.reward_kwargs.prmu_timeout_s": stage.prmu_timeout_s,
        "+reward.reward_kwargs.rollout_timeout_s": stage.rollout_timeout_s,
        "+reward.reward_kwargs.max_masked_fraction": stage.max_masked_fraction,
        "+reward.reward_kwargs.save_tokens": stage.save_tokens,
        "+reward.reward_kwargs.keep_best": stage.validation is not None and stage.validation.publish == "best",
        "+reward.reward_kwargs.schema_file": schema_file,
        "+reward.reward_kwargs.terms": [asdict(term) for term in stage.terms],
        **{f"+reward.reward_kwargs.advantage.{key}": value for key, value in stage.advantage.rules().items()},
        **_step_log_keys(stage),
    }
    if stage.rollouts_from is not None:
        keys |= {
            "+reward.reward_kwargs.saved_rollouts": str(saved),
            "actor_rollout_ref.rollout.agent.default_agent_loop": "saved_rollouts",
        }
    return keys


def _step_log_keys(stage: GrpoStage) -> dict[str, Any]:
    """What the logging hook (hooks.step_log) needs; verl itself reads none of it."""
    given = {**stage.log.model_dump(), "seed": stage.seed}
    return {f"+reward.reward_kwargs.step_log.{key}": value for key, value in given.items()}
