"""Which trackers a stage has, from the recipe's block `log`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagpr_rl.config import load_recipe
from tagpr_rl.run.layout import RunDir
from tagpr_rl.stages.common import tracking_settings


@pytest.mark.parametrize(
    "overrides, outages, expected",
    [
        ((), (), ("offline", False)),
        (("log.wandb=online", "log.tensorboard=true"), (), ("online", True)),
        (("log.wandb=online",), ("no network",), ("offline", False)),
        (("log.wandb=disabled",), ("no network",), ("disabled", False)),
    ],
)
def test_trackers(
    root: Path, tmp_path: Path, overrides: tuple[str, ...], outages: tuple[str, ...], expected: tuple[str, bool]
) -> None:
    recipe = load_recipe(root / "recipes" / "demo.yaml", overrides)
    settings = tracking_settings(recipe, RunDir(tmp_path), "sft", outages)
    assert (settings.wandb_mode, settings.tensorboard) == expected
