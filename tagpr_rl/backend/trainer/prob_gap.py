"""The largest gap between rollout and actor probabilities, measured in the update's own forward pass.

verl 0.9.1 measures it where it computes old log-probabilities (trainer_base.py:1694) and not in bypass mode, where the
rollout's stand for them. There the update compares the two anyway; its metrics (workers/utils/losses.py:57) have their
mean difference only.
"""

from __future__ import annotations

import functools
import sys
from typing import Any


def measure() -> None:
    """Wrap `ppo_loss` in verl's training worker (engine_workers.py:643); nothing in processes that are none."""
    module: Any = sys.modules.get("verl.workers.engine_workers")
    if module is not None and not getattr(module.ppo_loss, "tagpr_gap", False):
        module.ppo_loss = with_gap(module.ppo_loss)


def with_gap(loss: Any) -> Any:
    """`loss` with the metric `rollout_probs_diff_max`: the largest |p_new - p_old| of a token that counts."""
    from verl.utils.metric import Metric
    from verl.workers.utils.padding import no_padding_2_padding

    @functools.wraps(loss)
    def wrapped(config: Any, model_output: Any, data: Any, dp_group: Any = None) -> Any:
        new = no_padding_2_padding(model_output["log_probs"].detach(), data)
        old = data.select("response_mask", "old_log_probs").to_padded_tensor()
        gaps = (new.exp() - old["old_log_probs"].exp()).abs() * old["response_mask"]
        value, metrics = loss(config=config, model_output=model_output, data=data, dp_group=dp_group)
        metrics["rollout_probs_diff_max"] = Metric(aggregation="max", value=gaps.max())
        return value, metrics

    wrapped.tagpr_gap = True  # type: ignore[attr-defined]
    return wrapped
