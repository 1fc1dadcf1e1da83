"""What verl imports by name in its worker processes: hooks, a metric of the update, and the SFT dataset.

The recipe's overrides name this module in `model.external_lib`, and verl imports it before it builds an engine, a
rollout or a dataset (verl/workers/config/model.py:149): the earliest point that costs no start-up time elsewhere.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset
from verl.workers.rollout import base as rollout_base
from verl.workers.rollout import replica as rollout_replica

from tagpr_rl.backend import platform_cpu
from tagpr_rl.backend.forward import packed_attention  # noqa: F401  (registers the attention)
from tagpr_rl.backend.rollout import agent_worker
from tagpr_rl.backend.trainer import balance


class TokenizedDataset(Dataset):
    """Rows of a parquet file with `input_ids` (list of int) and `prompt_length` (int): the token ids of rollouts.

    verl's own dataset applies the chat template to every message again at every access.
    """

    def __init__(
        self, parquet_files: Any, tokenizer: Any, config: Any, processor: Any = None, max_samples: int = -1
    ) -> None:
        files = [parquet_files] if isinstance(parquet_files, str) else list(parquet_files)
        rows: list[dict[str, Any]] = []
        for file in files:
            rows += pq.read_table(file, columns=["input_ids", "prompt_length"]).to_pylist()
        self.rows = rows[:max_samples] if max_samples > 0 else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids`, `position_ids`, `loss_mask`, each [T]; the loss covers the completion only."""
        row = self.rows[index]
        ids = torch.tensor(row["input_ids"], dtype=torch.long)
        mask = torch.ones_like(ids)
        mask[: row["prompt_length"]] = 0
        return {"input_ids": ids, "position_ids": torch.arange(len(ids)), "loss_mask": mask}


def measure_gap() -> None:
    """Wrap `ppo_loss` in verl's training worker (engine_workers.py:643), if this process is one, by `with_gap`.

    The metric is the largest gap between the probabilities of rollout and actor, measured in the update's own forward
    pass. verl 0.9.1 measures it when it computes old log-probabilities (trainer_base.py:1694), which bypass mode
    skips: there the rollout's log-probabilities are the old ones. The update compares the two anyway, but its metrics
    (workers/utils/losses.py:57) hold their mean difference only.
    """
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


def _load_replica() -> type:
    from tagpr_rl.backend.rollout.server import TagprReplica

    return TagprReplica


rollout_base._ROLLOUT_REGISTRY[("vllm", "async")] = "tagpr_rl.backend.rollout.weights.TagprServerAdapter"
rollout_replica.RolloutReplicaRegistry.register("vllm", _load_replica)

measure_gap()
agent_worker.direct_agent_loops()
agent_worker.coalesced_puts()
balance.install()

if platform_cpu.requested():
    from tagpr_rl.backend.platform_cpu import workers  # registers the CPU engine
    from tagpr_rl.backend.rollout import tcp_weights  # noqa: F401  (registers the checkpoint engine "tagpr_tcp")

    workers.prepare()
else:
    from tagpr_rl.backend.forward import loss_tokens  # noqa: F401  (registers the engine)
