"""Time of the driver for each response of a GRPO step: rewards to advantages, metrics, the rollout file, and balancing.

Run: python bench/driver.py [--prompts 1024] [--group 16] [--tokens 1000] [--queue memory|transfer]

The responses are made, and no model answers: all that is timed is what a step does in the driver's process with each of
them. `transfer`: they pass through a TransferQueue in a Ray session of its own, as in a run. `memory`: they lie in this
process, so the figures are the project's own Python and torch. `cpu_ms` is processor time, which other work beside does
not change as much. One JSON object on standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("VERL_PLATFORM", "cpu")

BAR_MS = 0.3
CHUNK = 256
STEPS = "<examine_examples>{}</examine_examples><identify_patterns>{}</identify_patterns><conclude>{}</conclude>"


def made(prompts: int, group: int, tokens: int) -> dict[str, dict[str, Any]]:
    """Key -> fields of each response, as an agent-loop worker puts them."""
    import torch

    from tagpr_rl.backend.scoring.response_scorer import CheckRequest, ScoredResponse, TagChecker
    from tagpr_rl.monitor.phases import ScoringTimes
    from tagpr_rl.reward.components import short_form

    rng = random.Random(0)
    checker = TagChecker(None, short_form(alpha=0.1, beta=0.1, gamma=0.1), ".")
    items = {}
    for number in range(prompts * group):
        words = [" ".join(rng.choices(("film", "quiet", "war", "comedy", "user"), k=tokens // 3)) for _ in range(3)]
        text = f"<think>{STEPS.format(*words)}</think>{rng.choice(('comedy', 'drama'))}"
        (output,) = checker.score_many([CheckRequest(text, "LaMP_2", "comedy", rng.random(), "scored")])
        length = rng.randint(tokens * 3 // 4, tokens * 5 // 4)
        scores = torch.zeros(length)
        scores[-1] = output.total
        scored = ScoredResponse(text, output.row(), output.parts, ScoringTimes(1.0, 1.0, 2.0))
        items[f"g{number // group}_{number % group}_0"] = {
            "extra_fields": scored.extra_fields(),
            "extra_info": {"task": "LaMP_2", "record_id": f"{number // group}", "user_id": "u", "gold": "comedy"},
            "response_mask": torch.ones(length, dtype=torch.int64),
            "rm_scores": scores,
            "prompts": torch.arange(1, tokens + 1),
        }
    return items


class Memory:
    """TransferQueue's calls on a dictionary: key -> field -> value."""

    def __init__(self, items: dict[str, dict[str, Any]]) -> None:
        self.items = items

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> dict[str, Any]:
        """The fields of the keys; tensors of different lengths are one nested tensor."""
        import torch

        values = {field: [self.items[key][field] for key in keys] for field in select_fields}
        return {
            field: torch.nested.as_nested_tensor(own, layout=torch.jagged) if torch.is_tensor(own[0]) else own
            for field, own in values.items()
        }

    def kv_batch_put(self, keys: list[str], partition_id: str, fields: Any) -> None:
        """Set fields of the keys."""
        for field, values in fields.items():
            for key, value in zip(keys, values.unbind() if values.is_nested else list(values), strict=True):
                self.items[key][field] = value


class _Words:
    """A tokenizer whose every token is a word."""

    all_special_ids: tuple[int, ...] = ()
    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, ids))


def trainer_of(prompts: int) -> Any:
    """The project's hooks on a trainer whose own part of a step takes no time."""
    from omegaconf import OmegaConf

    from tagpr_rl.backend.trainer.hooks.rewards import RewardHooks
    from tagpr_rl.reward.components import short_form

    class Verl:
        def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
            return batch

        def _compute_metrics(self, batch: Any, metrics: dict[str, Any], *_: Any) -> None:
            metrics.update({f"training/off_policy/trajectory_staleness/{name}": 0.0 for name in ("mean", "max")})

    terms = [asdict(term) for term in short_form(alpha=0.1, beta=0.1, gamma=0.1)]
    settings = {
        "max_masked_fraction": 0.0, "prmu_timeout_s": 1.0, "save_tokens": False, "schema_file": None,
        "advantage": {"credit": "response", "normalise": "group_std"}, "terms": terms,
        "step_log": {"table_every": 5, "table_rows": 8, "keep_responses": None, "seed": 1},
    }  # fmt: skip
    trainer: Any = type("Trainer", (RewardHooks, Verl), {"local_trigger_step": 0})()
    trainer.replay_buffer = SimpleNamespace(failures=[])
    trainer.config = OmegaConf.create(
        {
            "reward": {"reward_kwargs": settings}, "data": {"train_batch_size": prompts},
            "actor_rollout_ref": {"actor": {"ppo_mini_batch_size": prompts, "ppo_epochs": 1}},
            "algorithm": {"rollout_correction": {"bypass_mode": True}},
        }
    )  # fmt: skip
    trainer.tokenizer, trainer.logger = _Words(), SimpleNamespace(table=lambda *_: None)
    return trainer


def measure(items: dict[str, dict[str, Any]], prompts: int) -> dict[str, float]:
    """Seconds of each part of one step over the responses `items`, which are where the hooks look for them."""
    from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Any:
        began = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - began

    cpu = time.process_time()
    trainer, metrics = trainer_of(prompts), {}
    batch = SimpleNamespace(keys=list(items), partition_id="train", tags=[{"max_global_steps": 1} for _ in items])
    lengths = [len(item["response_mask"]) for item in items.values()]
    with timed("balance"):
        get_seqlen_balanced_partitions(lengths, 8, equal_size=True)
    with timed("read"):
        trainer._step_responses(batch)
    with timed("advantage"):
        trainer._compute_advantage(batch, metrics)
    with timed("metrics"):
        trainer._compute_metrics(batch, metrics, {"step": 100.0, "gen": 50.0}, 2, 0)
    with tempfile.TemporaryDirectory() as folder, timed("rollout file"):
        trainer._log_rollout_data(batch, {}, folder)
    return {**seconds, "cpu": time.process_time() - cpu}


def in_memory(prompts: int, group: int, tokens: int) -> dict[str, float]:
    """`measure` without a queue."""
    from tagpr_rl.backend.trainer import balance
    from tagpr_rl.backend.trainer.hooks import rewards, step_log

    balance.install()
    items = made(prompts, group, tokens)
    modules: list[Any] = [rewards, step_log]
    for module in modules:
        module.tq = Memory(items)
    return measure(items, prompts)


def in_queue(prompts: int, group: int, tokens: int) -> dict[str, float]:
    """`measure` with a real TransferQueue, in an actor as in a run; `poll` is one look at the step's state."""
    from tagpr_rl.backend.session.ray_session import ray_session
    from tagpr_rl.config import load_recipe

    root = Path(__file__).resolve().parents[1]
    with ray_session(load_recipe(root / "recipes" / "smoke.yaml")) as ray:

        class Driver:
            def run(self) -> dict[str, float]:
                import transfer_queue as tq
                from verl.utils.tensordict_utils import list_of_dict_to_tensordict

                from tagpr_rl.backend.trainer import balance

                balance.install()
                tq.init()
                items = made(prompts, group, tokens)
                keys = list(items)
                for first in range(0, len(keys), CHUNK):
                    some = keys[first : first + CHUNK]
                    fields = list_of_dict_to_tensordict([items[key] for key in some])
                    tq.kv_batch_put(keys=some, partition_id="train", fields=fields, tags=[{"status": "x"}] * len(some))
                began = time.perf_counter()
                tq.kv_list()
                poll = time.perf_counter() - began
                seconds = measure(items, prompts)
                return {**seconds, "poll": poll}

        result: dict[str, float] = ray.get(ray.remote(num_cpus=1)(Driver).remote().run.remote())
        return result


def main() -> int:
    """Measure; print one JSON object."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--prompts", type=int, default=1024)
    options.add_argument("--group", type=int, default=16)
    options.add_argument("--tokens", type=int, default=1000)
    options.add_argument("--queue", choices=("memory", "transfer"), default="transfer")
    given = options.parse_args()
    how: Callable[[int, int, int], dict[str, float]] = in_memory if given.queue == "memory" else in_queue
    seconds = how(given.prompts, given.group, given.tokens)
    count = given.prompts * given.group
    cpu = 1000 * seconds.pop("cpu") / count
    each = 1000 * sum(seconds.values()) / count
    shown = {name: round(1000 * value / count, 4) for name, value in seconds.items()}
    print(
        json.dumps(
            vars(given) | {"ms_a_response": shown, "all_ms": round(each, 4), "cpu_ms": round(cpu, 4), "bar_ms": BAR_MS}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
