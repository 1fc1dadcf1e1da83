"""Compose verl's Hydra configs from our overrides, inside a worker process."""

from __future__ import annotations

from typing import Any

from tagpr_rl.backend.trainer.overrides import as_hydra


def compose(config_name: str, overrides: dict[str, Any]) -> Any:
    """verl's `config_name` (ppo_trainer, sft_trainer_engine) with `overrides`; unknown keys raise."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        return hydra_compose(config_name=config_name, overrides=as_hydra(overrides))
