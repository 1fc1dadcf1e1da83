"""What our trainer adds to verl's: metrics of every reward component, and who is left out of an update."""

from __future__ import annotations

import inspect
import os
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytestmark = [pytest.mark.stack, pytest.mark.torch]


def row(
    total: float, *, task: float = 0.0, prmu: float = 0.0, status: str = "OK", scored: str = "scored"
) -> dict[str, Any]:
    return {
        "total": total,
        "task": task,
        "format": float(status == "OK"),
        "tag": 0.5,
        "prmu": prmu,
        "repetition": 0.0,
        "parse_status": status,
        "prmu_status": scored,
    }


def test_component_metrics_by_hand() -> None:
    from tagpr_rl.backend.trainer import component_metrics

    rows = [
        row(1.0, task=1.0, prmu=0.8),
        row(0.0, task=0.0, prmu=0.4, status="TRUNCATED"),
        row(0.5, task=0.5, scored="masked"),
        row(0.5, task=0.5, prmu=0.6),
    ]
    found = component_metrics(rows, ["LaMP_2", "LaMP_2", "LaMP_3", "LaMP_3"], ["a", "a", "b", "b"])
    assert found["reward/total/mean"] == 0.5
    assert found["reward/total/std"] == pytest.approx((0.5 / 4) ** 0.5)  # deviations .5, .5, 0, 0
    assert found["reward/format/mean"] == 0.75
    assert found["reward/prmu/mean"] == pytest.approx(0.6)  # the masked response has no score
    assert found["reward/prmu/min"] == 0.4
    assert found["task/LaMP_2/mean"] == 0.5 and found["task/LaMP_3/mean"] == 0.5
    assert found["parse/OK"] == 0.75 and found["parse/TRUNCATED"] == 0.25
    assert found["prmu/masked_fraction"] == 0.25
    assert found["groups/zero_variance_fraction"] == 0.5  # group b


def test_a_stage_without_prmu_logs_no_prmu_reward() -> None:
    from tagpr_rl.backend.trainer import component_metrics

    found = component_metrics([row(1.0, scored="off"), row(0.0, scored="off")], ["LaMP_1"] * 2, ["a", "a"])
    assert not [key for key in found if key.startswith("reward/prmu")]
    assert found["prmu/masked_fraction"] == 0.0


@pytest.mark.parametrize(
    "statuses, masked",
    [
        (["scored"] * 4, []),
        (["masked", "scored", "scored", "scored"], [0]),  # group a keeps nobody to compare with: 1 goes too
        (["scored", "scored", "masked", "masked"], [2, 3]),
    ],
)
def test_unscored_responses_and_those_left_alone_are_masked(statuses: list[str], masked: list[int]) -> None:
    from tagpr_rl.backend.trainer import responses_to_mask

    found = responses_to_mask(statuses, ["a", "a", "b", "b"])
    assert found == (masked if statuses[0] != "masked" else [0, 1])


def test_the_hooks_that_we_override_are_still_there() -> None:
    from verl.trainer.main_ppo import TaskRunnerV1
    from verl.trainer.ppo.v1 import trainer_base
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    from tagpr_rl.backend.trainer import TagprTrainer

    for name in ("_compute_metrics", "_compute_advantage", "_log_rollout_data"):
        assert name in vars(trainer_base.PPOTrainer), name
        ours, theirs = getattr(TagprTrainer, name), getattr(PPOTrainerSync, name)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    assert trainer_base.TRAINER_REGISTRY["sync"] is PPOTrainerSync
    runner = TaskRunnerV1.__ray_metadata__.modified_class
    source = inspect.getsource(runner.run)
    assert "get_trainer_cls(config.trainer.v1.trainer_mode)" in source and "self.trainer.fit" in source
    fit = inspect.getsource(trainer_base.PPOTrainer.fit)
    assert "self.logger = Tracking(" in fit  # the module attribute that we replace
    assert '"extra_fields"' not in inspect.getsource(trainer_base.PPOTrainer._log_rollout_data)
