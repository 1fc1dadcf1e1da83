"""The gap between rollout and actor probabilities where verl does not measure it; by hand on verl's own tensors."""

from __future__ import annotations

import inspect
import math
import os
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytestmark = [pytest.mark.stack, pytest.mark.torch]


def nested(rows: list[list[float]], dtype: Any = None) -> Any:
    import torch

    return torch.nested.as_nested_tensor([torch.tensor(row, dtype=dtype) for row in rows], layout=torch.jagged)


def test_verl_measures_no_gap_in_bypass_mode_and_takes_the_loss_from_its_module() -> None:
    """When the first fails, verl logs the gap itself; when the second does, `measure_gap` has no effect."""
    from verl.trainer.ppo.v1 import trainer_base
    from verl.workers import engine_workers
    from verl.workers.utils.losses import ppo_loss

    source = inspect.getsource(trainer_base.PPOTrainer._compute_old_log_prob)
    bypass, _, rest = source.partition("return batch")
    assert "bypass_recomputing_logprobs:" in bypass and "calculate_debug_metrics" not in bypass
    assert "calculate_debug_metrics" in rest and "rollout_probs_diff" not in inspect.getsource(ppo_loss)
    assert "partial(ppo_loss, config=actor_config)" in inspect.getsource(engine_workers)


def test_the_largest_gap_of_a_token_that_counts() -> None:
    """Two responses of 2 and 1 tokens. verl's model output is shifted: the log-probability stands one token earlier."""
    import torch
    from tensordict import TensorDict

    from tagpr_rl.backend.trainer.worker_hooks import with_gap

    log = math.log
    # prompts of 1 token; the last entry of each row belongs to no token of the response
    output = {"log_probs": nested([[log(0.5), log(0.9), 7.0], [log(0.25), 7.0]])}
    data = TensorDict(
        {
            "prompts": nested([[1], [1]], torch.long),
            "responses": nested([[1, 2], [3]], torch.long),
            "response_mask": nested([[1, 0], [1]], torch.long),
            "old_log_probs": nested([[log(0.4), log(0.1)], [log(0.3)]]),
        },
        batch_size=[2],
    )
    given: dict[str, Any] = {}

    def loss(**arguments: Any) -> tuple[str, dict[str, Any]]:
        given.update(arguments)
        return "loss", {"other": 1}

    value, metrics = with_gap(loss)(config="c", model_output=output, data=data, dp_group=None)
    assert value == "loss" and metrics["other"] == 1 and given["config"] == "c" and given["data"] is data
    # .5 - .4 = .1; .9 - .1 does not count (masked); .25 - .3 = -.05
    assert metrics["rollout_probs_diff_max"].aggregate() == pytest.approx(0.1)


def test_it_is_named_as_verl_s_only_where_it_is_that() -> None:
    from types import SimpleNamespace as Box

    from tagpr_rl.backend.trainer.hooks.step_log import StepLogger

    def named(bypass: bool, mini: int, found: dict[str, float]) -> dict[str, float]:
        actor = Box(ppo_mini_batch_size=mini, ppo_epochs=1)
        config = Box(
            actor_rollout_ref=Box(actor=actor),
            algorithm=Box(rollout_correction=Box(bypass_mode=bypass)),
            data=Box(train_batch_size=8),
        )
        StepLogger._name_gap(Box(_config=config), found)  # type: ignore[arg-type]
        return found

    gap = {"actor/rollout_probs_diff_max": 0.25}
    assert named(True, 8, dict(gap)) == {"training/rollout_probs_diff_max": 0.25}
    assert named(True, 4, dict(gap)) == {}  # the second update's weights have moved
    own = {"training/rollout_probs_diff_max": 0.5}
    assert named(False, 8, gap | own) == own
