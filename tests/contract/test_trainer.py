"""What our trainer adds to verl's: metrics of every reward component, and who is left out of an update."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

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
    from tagpr_rl.reward.components import component_names

    rows = [
        row(1.0, task=1.0, prmu=0.8),
        row(0.0, task=0.0, prmu=0.4, status="TRUNCATED"),
        row(0.5, task=0.5, scored="masked"),
        row(0.5, task=0.5, prmu=0.6),
    ]
    actual = component_metrics(
        rows, ["LaMP_2", "LaMP_2", "LaMP_3", "LaMP_3"], ["a", "a", "b", "b"], component_names(())
    )
    assert actual["reward/total/mean"] == 0.5  # of 1, 0 and .5: the masked response has no total either
    assert actual["reward/total/std"] == pytest.approx((0.5 / 3) ** 0.5)  # deviations .5, .5, 0
    assert actual["reward/format/mean"] == 0.75
    assert actual["reward/prmu/mean"] == pytest.approx(0.6)  # the masked response has no score
    assert actual["reward/prmu/min"] == 0.4
    assert actual["task/LaMP_2/mean"] == 0.5 and actual["task/LaMP_3/mean"] == 0.5
    assert actual["parse/OK"] == 0.75 and actual["parse/TRUNCATED"] == 0.25
    assert (actual["prmu/masked"], actual["prmu/masked_fraction"]) == (1.0, 0.25)
    assert actual["groups/zero_variance_fraction"] == 0.5  # group b


def test_a_stage_without_prmu_logs_no_prmu_reward() -> None:
    from tagpr_rl.monitor.step import component_metrics
    from tagpr_rl.reward.components import component_names

    actual = component_metrics(
        [row(1.0, scored="off"), row(0.0, scored="off")], ["LaMP_1"] * 2, ["a", "a"], component_names(())
    )
    assert not [key for key in actual if key.startswith("reward/prmu")]
    assert actual["prmu/masked_fraction"] == 0.0


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

    actual = responses_to_mask(statuses, ["a", "a", "b", "b"])
    assert actual == (masked if statuses[0] != "masked" else [0, 1])


def test_the_wait_for_scores_is_from_the_last_rollout_to_the_last_score() -> None:
    from tagpr_rl.monitor.phases import ScoringTimes, prmu_metrics

    requested = [(10.0, 10.5), (12.0, 12.1), (11.0, 12.4)]  # the last rollout ends at 12, the last score comes at 12.4
    rows = [ScoringTimes(start, end, end) for start, end in requested]
    assert prmu_metrics(rows, 8.0) == pytest.approx(
        {"timing_s/prmu_wait": 0.4, "prmu/wait_fraction": 0.05, "prmu/seconds/mean": 2 / 3, "prmu/seconds/max": 1.4}
    )
    assert "prmu/wait_fraction" not in prmu_metrics(rows, None) and prmu_metrics([], 8.0) == {}


def test_too_many_lost_responses_stop_the_stage_with_their_reasons() -> None:
    from tagpr_rl.backend.trainer.hooks.rewards import too_many_lost

    def limits(fraction: float) -> Any:
        return SimpleNamespace(max_masked_fraction=fraction, prmu_timeout_s=60.0)

    statuses = ["masked"] * 3 + ["scored"] * 57
    reasons = ["late", "nan", "late"] + [""] * 57
    prmu = "PRMU could not score 3 of 60 responses (max_masked_fraction=0.04, prmu_timeout_s=60): 2 x late; 1 x nan"
    assert too_many_lost(statuses, reasons, [], 3, limits(0.05)) == ""  # 5 %, the limit itself
    assert too_many_lost(statuses, reasons, [], 3, limits(0.04)) == prmu
    assert too_many_lost(statuses, reasons, [], 60, limits(1.0))  # nobody is left to learn from
    assert too_many_lost(["off"] * 4, [""] * 4, [], 4, limits(0.0)) == ""
    # Failed responses count as much, and are no part of the statuses: 5 of 62 are lost.
    assert too_many_lost(statuses, reasons, ["it is empty"] * 2, 3, limits(5 / 62)) == ""
    both = too_many_lost(statuses, reasons, ["it is empty"] * 2, 3, limits(0.08))
    assert both.replace("0.08", "0.04").replace("62", "60") == (
        f"{prmu}. 2 of 60 responses could not be generated (max_masked_fraction=0.04): 2 x it is empty"
    )
    assert too_many_lost(["off"] * 9, [""] * 9, ["cut"], 0, limits(0.0)).startswith("1 of 10 responses could not be")


def test_the_hooks_that_we_override_are_still_there() -> None:
    from verl.trainer.main_ppo import TaskRunnerV1
    from verl.trainer.ppo.v1 import trainer_base
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    from tagpr_rl.backend.trainer.trainers import TagprTrainer

    for name in ("_compute_metrics", "_compute_advantage", "_log_rollout_data"):
        assert name in vars(trainer_base.PPOTrainer), name
        own, reference = getattr(TagprTrainer, name), getattr(PPOTrainerSync, name)
        assert list(inspect.signature(own).parameters) == list(inspect.signature(reference).parameters)
    assert trainer_base.TRAINER_REGISTRY["sync"] is PPOTrainerSync
    runner = TaskRunnerV1.__ray_metadata__.modified_class
    source = inspect.getsource(runner.run)
    assert "get_trainer_cls(config.trainer.v1.trainer_mode)" in source and "self.trainer.fit" in source
    fit = inspect.getsource(trainer_base.PPOTrainer.fit)
    assert "self.logger = Tracking(" in fit  # the module attribute that we replace
    assert '"extra_fields"' not in inspect.getsource(trainer_base.PPOTrainer._log_rollout_data)


class FakeQueue:
    """TransferQueue of one batch in memory: key -> field -> value."""

    def __init__(self, items: dict[str, dict[str, Any]]) -> None:
        self.items = items

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> dict[str, Any]:
        import torch

        actual: dict[str, Any] = {}
        for field in select_fields:
            values = [self.items[key][field] for key in keys]
            tensors = isinstance(values[0], torch.Tensor)
            actual[field] = torch.nested.as_nested_tensor(values, layout=torch.jagged) if tensors else values
        return actual

    def kv_batch_put(self, keys: list[str], partition_id: str, fields: Any) -> None:
        for field, values in fields.items():
            rows = values.unbind() if getattr(values, "is_nested", False) else list(values)
            for key, value in zip(keys, rows, strict=True):
                self.items[key][field] = value


def test_the_hook_writes_our_advantages_and_takes_out_who_has_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Group a differs, with credit per step; b is equal, and dropped; then a padding row, as verl adds them."""
    import torch
    from omegaconf import OmegaConf

    from tagpr_rl.backend.trainer.hooks import rewards as reward_hooks
    from tagpr_rl.reward.components import short_form

    class Verl:
        def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
            kept = [key for key in batch.keys if int(queue.items[key]["response_mask"].sum())]
            assert kept == ["a_0_0", "a_1_0"]  # masked before verl looks
            return batch

    def item(total: float, length: int, steps: list[list[Any]]) -> dict[str, Any]:
        extra = {
            "reward_extra_info": row(total),
            "prmu": {"sent_at": 0.0, "done_at": 0.0, "scored_at": 0.0, "reason": ""},
            "text": "",
            "step_parts": {"coverage": 1.0, "steps": steps},
        }
        mask = torch.ones(length, dtype=torch.int64)
        return {"extra_fields": extra, "extra_info": {}, "response_mask": mask, "loss_mask": mask, "uid": "?"}

    steps = [["x", 1, 2, True, 0.0], ["y", 2, 4, False, 0.0]]
    queue = FakeQueue(
        {
            "a_0_0": item(1.0, 5, steps), "b_0_0": item(1.0, 2, []), "a_1_0": item(0.5, 3, []),
            "b_1_0": item(1.0, 2, []), "pad_0_0": item(1.0, 1, steps), "pad_1_0": item(1.0, 1, steps),
        }
    )  # fmt: skip
    monkeypatch.setattr(reward_hooks, "tq", queue)
    rules = {"credit": "step", "zero_variance": "drop", "normalise": "none", "step_weight": 1.0}
    terms = [asdict(term) for term in short_form(alpha=0.4, beta=0.0, gamma=0.0)]
    settings = {"max_masked_fraction": 0.0, "prmu_timeout_s": 1.0, "advantage": rules, "terms": terms}
    trainer = type("Trainer", (reward_hooks.RewardHooks, Verl), {"local_trigger_step": 0})()
    trainer.replay_buffer = SimpleNamespace(failures=[])
    trainer.config = OmegaConf.create({"reward": {"reward_kwargs": settings}})
    keys = list(queue.items)
    batch = SimpleNamespace(keys=keys, partition_id="train", tags=[{"is_padding": key[0] == "p"} for key in keys])
    metrics: dict[str, Any] = {}
    assert trainer._compute_advantage(batch, metrics) is batch
    # Response a_0: 1 + .4 * (1 - .5) = 1.2 without its steps' part (tag .5 becomes coverage 1), a_1: .5; mean .85.
    # Its steps: 0 and -1, centred.
    actual = {key: queue.items[key]["advantages"].tolist() for key in keys}
    assert actual["a_0_0"] == pytest.approx([0.35, 0.85, -0.15, -0.15, 0.35])
    assert actual["a_1_0"] == pytest.approx([-0.35] * 3)
    assert not any(any(actual[key]) for key in keys if key[0] != "a")
    assert not any(int(queue.items[key]["loss_mask"].sum()) for key in keys if key[0] != "a")
    assert metrics["algo/dropped_groups_total"] == 1.0
    columns = dict(
        zip(keys, trainer._credit_columns(keys, [queue.items[key]["advantages"] for key in keys]), strict=True)
    )
    assert columns["a_0_0"]["advantage"] == pytest.approx(0.35)
    assert [step["advantage"] for step in columns["a_0_0"]["step_credit"]] == pytest.approx([0.5, -0.5])
    assert columns["b_0_0"] == {"advantage": 0.0, "masked": True, "why": "zero variance"}
    assert columns["a_1_0"].keys() == {"advantage"}


class CharacterTokens:
    """A tokenizer with one token a character."""

    all_special_ids: tuple[int, ...] = ()
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        return {"input_ids": [ord(c) for c in text], "offset_mapping": [(i, i + 1) for i in range(len(text))]}


def test_a_response_is_parsed_once_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the tag checker over tokens, credit, metrics and table to the file; with a component of the user's own."""
    import torch
    from omegaconf import OmegaConf

    from tagpr_rl.backend.rollout.agent_loop import StepTokens
    from tagpr_rl.backend.rollout.failures import Failure
    from tagpr_rl.backend.scoring.response_scorer import CheckRequest, ScoredResponse, TagChecker
    from tagpr_rl.backend.trainer.hooks import rewards as reward_hooks
    from tagpr_rl.backend.trainer.hooks import step_log
    from tagpr_rl.monitor.phases import ScoringTimes
    from tagpr_rl.prompts.tokens import ResponseText
    from tagpr_rl.reward.components import Term, short_form
    from tagpr_rl.tags import grammar

    parses: Counter[str] = Counter()
    original = grammar.parse

    def counted(response: str, *args: Any, **kwargs: Any) -> Any:
        parses[response] += 1
        return original(response, *args, **kwargs)

    for name, module in list(sys.modules.items()):
        if name.startswith("tagpr_rl") and getattr(module, "parse", None) is original:
            monkeypatch.setattr(module, "parse", counted)
    (tmp_path / "rewards_of_mine.py").write_text("def length(response):\n    return -len(response.text) / 1000\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    terms = (*short_form(alpha=0.3, beta=0.0, gamma=0.1), Term("length", 0.5, "rewards_of_mine:length"))
    steps = "<examine_examples>one</examine_examples><conclude>two</conclude>"
    texts = [f"<think>{steps}</think>comedy", f"<think>{steps}</think>drama", "comedy", "<think>a</think>comedy"]

    tokenizer = CharacterTokens()
    checker = TagChecker(None, terms, str(tmp_path))
    outputs = checker.score_many([CheckRequest(text, "LaMP_2", "comedy", None, "off") for text in texts])
    items = {}
    for number, (text, output) in enumerate(zip(texts, outputs, strict=True)):
        ids = [ord(character) for character in text]
        parts = StepTokens(tokenizer, ResponseText(tokenizer, None)).locate([], ids, output.parts)
        mask, scores = torch.ones(len(ids), dtype=torch.int64), torch.zeros(len(ids))
        scores[-1] = output.total
        items[f"g{number // 2}_{number % 2}_0"] = {
            "extra_fields": ScoredResponse(text, output.row(), parts, ScoringTimes(1.0, 1.0, 2.0)).extra_fields(),
            "extra_info": {"task": "LaMP_2", "record_id": f"{number // 2}", "user_id": "u", "gold": "comedy"},
            "response_mask": mask, "loss_mask": mask, "uid": "?", "rm_scores": scores, "prompts": torch.tensor([112]),
        }  # fmt: skip

    class Verl:
        def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
            return batch

        def _compute_metrics(self, batch: Any, metrics: dict[str, Any], *_: Any) -> None:
            metrics.update({f"training/off_policy/trajectory_staleness/{name}": 0.0 for name in ("mean", "max")})

    queue, tables = FakeQueue(items), []
    monkeypatch.setattr(reward_hooks, "tq", queue)
    monkeypatch.setattr(step_log, "tq", queue)
    settings = {
        "max_masked_fraction": 0.2, "prmu_timeout_s": 1.0, "save_tokens": False, "schema_file": None,
        "advantage": {"credit": "step", "normalise": "group_std"}, "terms": [asdict(term) for term in terms],
        "step_log": {"table_every": 1, "table_rows": 2, "keep_responses": None, "seed": 1},
    }  # fmt: skip
    trainer = type("Trainer", (reward_hooks.RewardHooks, Verl), {"local_trigger_step": 0})()
    trainer.replay_buffer = SimpleNamespace(failures=[])
    trainer.config = OmegaConf.create(
        {
            "reward": {"reward_kwargs": settings}, "data": {"train_batch_size": 2},
            "actor_rollout_ref": {"actor": {"ppo_mini_batch_size": 2, "ppo_epochs": 1}},
            "algorithm": {"rollout_correction": {"bypass_mode": True}},
        }
    )  # fmt: skip
    items["g0_0_0"]["extra_fields"]["attempts"] = 3
    trainer.replay_buffer.failures = [Failure("LaMP_2", "1", 2, "it is empty")]
    trainer.global_steps, trainer.tokenizer = 1, tokenizer
    trainer.logger = SimpleNamespace(table=lambda *table: tables.append(table))
    batch = SimpleNamespace(keys=list(items), partition_id="train", tags=[{"max_global_steps": 0}] * 4)
    metrics: dict[str, Any] = {}
    trainer._compute_advantage(batch, metrics)
    trainer._compute_metrics(batch, metrics, {"step": 4.0, "gen": 1.0}, 1, 0)
    trainer._log_rollout_data(batch, {}, str(tmp_path))

    assert parses == dict.fromkeys(texts, 1)
    lines = [json.loads(line) for line in (tmp_path / "step_0001.jsonl").read_text().splitlines()]
    assert [line["response"] for line in lines] == texts  # no line for the failed one
    assert (metrics["rollout/failed"], metrics["rollout/retried"]) == (1.0, 1.0) and not trainer._failures
    assert [line["reward_length"] for line in lines] == [-len(text) / 1000 for text in texts]
    assert lines[0]["weights"] == {"task_format": 1, "tag": 0.3, "prmu_format": 0, "repetition": 0.1, "length": 0.5}
    # One of three required tags, both steps sound: 1 + .3 / 3 - .5 * length.
    assert lines[0]["reward_total"] == pytest.approx(1.1 - 0.0005 * len(texts[0]))
    assert lines[0]["tag_parts"] == {"coverage": pytest.approx(1 / 3), "sound": 1.0} and lines[3]["tag_parts"] is None
    assert [step["tag"] for step in lines[0]["step_credit"]] == ["examine_examples", "conclude"]
    assert metrics["tag/conclude/use"] == 0.5 and metrics["reward/length/min"] == -len(texts[0]) / 1000
    assert "reward_length" in tables[0][1]


def test_scorers_on_the_policy_s_devices_start_when_these_are_chosen_and_before_the_first_weights_are_sent() -> None:
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    from tagpr_rl.backend.trainer.trainers import ScorerHooks, TagprSeparateTrainer, TagprTrainer

    assert "self._setup()\n        self.on_init_end()" in inspect.getsource(PPOTrainer.init)
    assert "update_weights" in inspect.getsource(PPOTrainerSync.on_init_end)
    assert all(trainer.__mro__[1] is ScorerHooks for trainer in (TagprTrainer, TagprSeparateTrainer))
    order: list[object] = []

    class Base:
        def __init__(self, config: str) -> None:
            pool = SimpleNamespace(get_placement_groups=lambda: ["node 0", "node 1"])
            self.resource_pool_manager = SimpleNamespace(resource_pool_dict={"global_pool": pool})
            order.append(config)

        def on_init_end(self) -> None:
            order.append("weights")

    class Trainer(ScorerHooks, Base):
        pass

    Trainer("alone").on_init_end()
    Trainer("shared", start_scorers=order.append).on_init_end()
    assert order == ["alone", "weights", "shared", ["node 0", "node 1"], "weights"]
