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
    from tagpr_rl.monitor.step import component_metrics

    rows = [
        row(1.0, task=1.0, prmu=0.8),
        row(0.0, task=0.0, prmu=0.4, status="TRUNCATED"),
        row(0.5, task=0.5, scored="masked"),
        row(0.5, task=0.5, prmu=0.6),
    ]
    found = component_metrics(rows, ["LaMP_2", "LaMP_2", "LaMP_3", "LaMP_3"], ["a", "a", "b", "b"])
    assert found["reward/total/mean"] == 0.5  # of 1, 0 and .5: the masked response has no total either
    assert found["reward/total/std"] == pytest.approx((0.5 / 3) ** 0.5)  # deviations .5, .5, 0
    assert found["reward/format/mean"] == 0.75
    assert found["reward/prmu/mean"] == pytest.approx(0.6)  # the masked response has no score
    assert found["reward/prmu/min"] == 0.4
    assert found["task/LaMP_2/mean"] == 0.5 and found["task/LaMP_3/mean"] == 0.5
    assert found["parse/OK"] == 0.75 and found["parse/TRUNCATED"] == 0.25
    assert (found["prmu/masked"], found["prmu/masked_fraction"]) == (1.0, 0.25)
    assert found["groups/zero_variance_fraction"] == 0.5  # group b


def test_a_stage_without_prmu_logs_no_prmu_reward() -> None:
    from tagpr_rl.monitor.step import component_metrics

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
    from tagpr_rl.reward.update import responses_to_mask

    found = responses_to_mask(statuses, ["a", "a", "b", "b"])
    assert found == (masked if statuses[0] != "masked" else [0, 1])


def test_the_wait_for_scores_is_from_the_last_rollout_to_the_last_score() -> None:
    from tagpr_rl.monitor.step import prmu_metrics

    asked = [(10.0, 10.5), (12.0, 12.1), (11.0, 12.4)]  # the last rollout ends at 12, the last score comes at 12.4
    rows = [{"asked_at": start, "done_at": end, "reason": ""} for start, end in asked]
    assert prmu_metrics(rows, 8.0) == pytest.approx(
        {"timing_s/prmu_wait": 0.4, "prmu/wait_fraction": 0.05, "prmu/seconds/mean": 2 / 3, "prmu/seconds/max": 1.4}
    )
    assert "prmu/wait_fraction" not in prmu_metrics(rows, None) and prmu_metrics([], 8.0) == {}


def test_too_many_unscored_responses_stop_the_stage_with_their_reasons() -> None:
    from tagpr_rl.backend.reward_hooks import too_many_unscored

    statuses = ["masked"] * 3 + ["scored"] * 57
    reasons = ["late", "nan", "late"] + [""] * 57
    assert too_many_unscored(statuses, reasons, 3, 0.05, 60.0) == ""  # 5 %, the limit itself
    assert too_many_unscored(statuses, reasons, 3, 0.04, 60.0) == (
        "PRMU could not score 3 of 60 responses (max_masked_fraction=0.04, prmu_timeout_s=60): 2 x late; 1 x nan"
    )
    assert too_many_unscored(statuses, reasons, 60, 1.0, 60.0)  # nobody is left to learn from
    assert too_many_unscored(["off"] * 4, [""] * 4, 4, 0.0, 60.0) == ""


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
