"""verl's actor loss, set up by our recipe keys and fed our advantages, against sums done by hand."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tagpr_rl.backend.rollout.places import prompt_name
from tagpr_rl.backend.trainer.overrides import StagePaths, grpo_overrides
from tagpr_rl.config import load_recipe
from tagpr_rl.types import TagprError

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytestmark = [pytest.mark.stack, pytest.mark.torch]
ROOT = Path(__file__).resolve().parents[2]
PATHS = StagePaths(Path("/m"), Path("/train.parquet"), Path("/ckpt"), Path("/rollouts"))
GSPO = ("loss=gspo", "loss_agg=seq-mean-token-mean", "clip_low=3e-4", "clip_high=4e-4")


def composed(*keys: str) -> Any:
    from tagpr_rl.backend.trainer.overrides import compose

    recipe = load_recipe(ROOT / "recipes/demo.yaml", tuple(f"stages.guided.{key}" for key in keys))
    return compose("ppo_trainer", grpo_overrides(recipe, "guided", PATHS))


def loss_of(
    keys: tuple[str, ...],
    log_ratios: list[list[float]],
    advantages: list[Any],
    *,
    masked: tuple[int, ...] = (),
    ref: float | None = None,
) -> tuple[float, list[list[float]]]:
    """verl's ppo_loss and its gradient by each token's log-probability `[B][T]`; old log-probabilities are -1."""
    import torch
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.utils.losses import ppo_loss

    config = omega_conf_to_dataclass(composed(*keys).actor_rollout_ref.actor)
    log_probs = torch.tensor([[-1.0 + r for r in row] for row in log_ratios], requires_grad=True)
    batch, length = log_probs.shape

    def nested(rows: Any) -> Any:
        return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)

    # The model's output stands one token earlier, over prompt (1 token) and response.
    output = torch.cat([log_probs, torch.zeros(batch, 1)], dim=1).flatten()
    masks = [[0 if i in masked else 1] * length for i in range(batch)]
    fields = {
        "prompts": nested([[1]] * batch),
        "responses": nested([[1] * length] * batch),
        "response_mask": nested(masks),
        "old_log_probs": nested([[-1.0] * length] * batch),
        "advantages": nested(advantages),
    }
    if ref is not None:
        fields["ref_log_prob"] = nested([[ref] * length] * batch)
    data = TensorDict(fields, batch_size=[batch])
    tokens = sum(map(sum, masks))
    tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=tokens, global_batch_size=batch)
    loss, _ = ppo_loss(config, {"log_probs": output}, data)
    loss.backward()
    assert log_probs.grad is not None
    return float(loss), log_probs.grad.tolist()


def ours(*credits: tuple[float, tuple[float, ...]]) -> list[Any]:
    """Token advantages of two-token responses whose two tokens are two steps."""
    import torch

    from tagpr_rl.backend.trainer.advantages import token_advantages
    from tagpr_rl.reward.response import ResponseParts, StepPart
    from tagpr_rl.reward.update import Credit

    parts = ResponseParts(1.0, (StepPart("a", 0, 1, True, 0.0), StepPart("b", 1, 2, True, 0.0)))
    return [token_advantages(Credit(value, steps), parts, torch.ones(2)) for value, steps in credits]


def test_clip_higher_by_hand() -> None:
    """Ratios 1.5 and .5, bounds .8 and 1.28. A = 1: min(1.5, 1.28), min(.5, .8). A = -1: -max(1.5, 1.28), -max(.5, .8).
    A masked response, as a dropped group's is, counts in no mean."""
    up, down = math.log(1.5), math.log(0.5)
    advantages = ours((1.0, ()), (-1.0, ()), (0.0, ()))
    loss, gradient = loss_of(
        ("clip_low=0.2", "clip_high=0.28"), [[up, down], [up, down], [up, down]], advantages, masked=(2,)
    )
    assert loss == pytest.approx(-(1.28 + 0.5 - 1.5 - 0.8) / 4, abs=1e-6)
    # Clipped tokens have no gradient; the others -A * ratio / tokens in the mean.
    expected = [[0.0, -0.5 / 4], [1.5 / 4, 0.0], [0.0, 0.0]]
    for actual, row in zip(gradient, expected, strict=True):
        assert actual == pytest.approx(row, abs=1e-6)


def test_a_step_s_credit_lands_on_its_tokens() -> None:
    """On-policy the gradient of a token is -A / tokens: the response's .5, and -.3 and .2 of its two steps."""
    _, gradient = loss_of((), [[0.0, 0.0], [0.0, 0.0]], ours((0.5, (-0.3, 0.2)), (-0.5, ())))
    assert gradient[0] == pytest.approx([-0.2 / 4, -0.7 / 4])
    assert gradient[1] == pytest.approx([0.5 / 4, 0.5 / 4])


def test_gspo_by_hand() -> None:
    """The ratio is the response's: e^(mean log-ratio). Response 0: e^.001, over 1.0004: clipped, no gradient though one
    token's ratio is 1. Response 1, A = -1: e^.0002 within the bounds, both tokens the same gradient."""
    loss, gradient = loss_of(GSPO, [[0.002, 0.0], [0.0006, -0.0002]], ours((1.0, ()), (-1.0, ())))
    inside = math.exp(0.0002)
    assert loss == pytest.approx((-1.0004 + inside) / 2, abs=1e-6)
    assert gradient[0] == [0.0, 0.0]
    assert gradient[1] == pytest.approx([inside / 2 / 2] * 2, abs=1e-6)
    vanilla, _ = loss_of(
        ("loss_agg=seq-mean-token-mean", *GSPO[2:]), [[0.002, 0.0], [0.0006, -0.0002]], ours((1.0, ()), (-1.0, ()))
    )
    assert vanilla == pytest.approx((-(1.0004 + 1) / 2 + (math.exp(0.0006) + 0.9998) / 2) / 2, abs=1e-6)
    assert abs(vanilla - loss) > 1e-5


def test_dr_grpo_divides_by_a_constant_not_by_the_length() -> None:
    length = composed().data.max_response_length
    loss, _ = loss_of(("loss_agg=seq-mean-token-sum-norm",), [[0.0, 0.0]] * 2, ours((0.5, ()), (0.25, ())))
    assert loss == pytest.approx(-(2 * 0.5 + 2 * 0.25) / 2 / length)


def test_kl_coef_pulls_to_the_reference() -> None:
    """k3 of a token: e^d - d - 1 with d = ref - log-probability = .1; its gradient is 1 - e^d."""
    plain = loss_of((), [[0.0, 0.0]], ours((0.0, ())))
    assert plain == (0.0, [[0.0, 0.0]])
    loss, gradient = loss_of(("kl_coef=0.5",), [[0.0, 0.0]], ours((0.0, ())), ref=-0.9)
    assert loss == pytest.approx(0.5 * (math.exp(0.1) - 0.1 - 1), abs=1e-6)
    assert gradient[0] == pytest.approx([0.5 * (1 - math.exp(0.1)) / 2] * 2, abs=1e-6)


@pytest.mark.parametrize("reuse", ["true", "false"])
def test_gspo_keeps_its_loss_with_and_without_the_rollouts_log_probabilities(reuse: str) -> None:
    """V1 copies the log-probabilities in bypass mode and leaves the loss mode alone; V0's helper replaces it."""
    import inspect

    from verl.trainer.ppo.v1 import trainer_base

    config = composed(*GSPO, f"reuse_rollout_logprobs={reuse}")
    assert config.algorithm.rollout_correction.bypass_mode is (reuse == "true")
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "gspo"
    assert "apply_bypass_mode" not in inspect.getsource(trainer_base)


@pytest.mark.parametrize(
    "level, expected", [("token", [[2.0, 0.5, 0.0], [1.5, 1.0, 1.0]]), ("sequence", [[2.0, 2.0, 0.0], [1.5, 1.5, 1.5]])]
)
def test_the_rollout_correction_weighs_a_token_s_loss(level: str, expected: list[list[float]]) -> None:
    """Update / rollout: .4 / .1 = 4, cut at 2, .1 / .2 = .5, and a token that is masked; .6 / .4 = 1.5, and 1 twice.
    The products are 2 (4 x .5) and 1.5. Old log-probabilities are the update's, so the loss is -weight * advantage."""
    import torch
    from verl import DataProto
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_add_to_batch
    from verl.utils.config import omega_conf_to_dataclass

    keys = ("reuse_rollout_logprobs=false", f"rollout_correction={{level: {level}, threshold: 2}}")
    config = composed(*keys)
    old = torch.tensor([[0.4, 0.1, 0.9], [0.6, 0.5, 0.5]]).log()
    rollout = torch.tensor([[0.1, 0.2, 0.1], [0.4, 0.5, 0.5]]).log()
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    batch = DataProto.from_dict({"old_log_probs": old, "rollout_log_probs": rollout, "response_mask": mask})
    batch, metrics = compute_rollout_correction_and_add_to_batch(batch, config.algorithm.rollout_correction)
    weights = batch.batch["rollout_is_weights"]
    assert weights.tolist() == [pytest.approx(row) for row in expected]
    assert metrics["rollout_corr/rollout_is_max"] == 2.0
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    loss, _ = get_policy_loss_fn("vanilla")(
        old_log_prob=old, log_prob=old, advantages=torch.ones(2, 3), response_mask=mask, loss_agg_mode="token-mean",
        config=actor, rollout_is_weights=weights,
    )  # fmt: skip
    assert float(loss) == pytest.approx(-sum(map(sum, expected)) / 5)


def test_the_rollout_correction_is_on_where_it_acts() -> None:
    bypass, again = composed(), composed("reuse_rollout_logprobs=false")
    assert bypass.algorithm.rollout_correction.rollout_is is None
    assert again.algorithm.rollout_correction.rollout_is is None  # float32: rollout and update agree
    recipe = load_recipe(ROOT / "recipes/lamp/qwen3_0.6b.yaml", ("stages.guided.reuse_rollout_logprobs=false",))
    keys = grpo_overrides(recipe, "guided", PATHS)
    assert keys["algorithm.rollout_correction.rollout_is"] == "token"
    assert keys["algorithm.rollout_correction.rollout_is_threshold"] == 2.0
    with pytest.raises(TagprError, match="rollout_correction would be ignored"):
        composed("rollout_correction={level: token}")
    composed("rollout_correction={level: off}")


def test_verl_s_own_gdpo_gets_no_components_in_v1() -> None:
    """Why per_component is ours: once V1 hands the components over, verl's can be looked at again."""
    import inspect

    from verl.trainer.ppo.v1 import trainer_base

    source = inspect.getsource(trainer_base.PPOTrainer._compute_advantage)
    assert "reward_extra_info" not in source and "extra_fields" not in source


def test_verl_s_float32_advantages_of_equal_rewards_are_not_zero() -> None:
    """Why GRPO's are ours, too: rounding of the mean, 6e-8, over std 0 + 1e-6."""
    import numpy as np
    import torch
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    from tagpr_rl.reward.advantages.group import group_advantages

    rewards = torch.full((8, 1), 0.996551724137931)
    actual, _ = compute_grpo_outcome_advantage(rewards, torch.ones(8, 1), np.array(["g"] * 8, dtype=object))
    assert float(actual.abs().min()) > 0.05 and float(actual.sum().abs()) > 0.4
    assert group_advantages(rewards[:, 0].tolist()) == [0.0] * 8


class Queue:
    """What the replay buffer asks of TransferQueue; prompts are answered at once, some alike, the last one first."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.scores: dict[str, float] = {}
        self.asked = 0

    def ask(self, count: int, alike: bool) -> None:
        for _ in range(count):
            uid = prompt_name(1, self.asked)
            self.asked += 1
            self.items[uid] = {"is_prompt": True, "status": "finished", "global_steps": 1}
            for sample in (0, 1):
                self.items[f"{uid}_{sample}_0"] = {"status": "success"}
                self.scores[f"{uid}_{sample}_0"] = 1.0 if alike else float(sample)

    def kv_list(self) -> dict[str, Any]:
        return {"train": dict(reversed(self.items.items()))}

    def kv_clear(self, partition_id: str, keys: list[str]) -> None:
        for key in keys:
            self.items.pop(key, None)

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> dict[str, Any]:
        import torch

        assert select_fields == ["rm_scores"]
        return {"rm_scores": [torch.tensor([0.0, self.scores[key]]) for key in keys]}


@pytest.mark.parametrize(
    "first, good_after, limit, given_up, left", [(4, 3, 8, 3, 0), (4, 100, 5, 5, 4), (8, 5, 2, 2, 1)]
)
def test_resampling_asks_until_the_step_is_full_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, first: int, good_after: int, limit: int, given_up: int, left: int
) -> None:
    """Prompts from number `good_after` on differ; `left` groups of equal answers end in the step. The second case would
    never end in verl's own buffer; in the third, 8 are there at once and the 3 that differ are taken first."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.v1 import replay_buffer

    from tagpr_rl.backend.trainer.replay_buffers import ResamplingReplayBuffer

    queue = Queue()
    monkeypatch.setattr(replay_buffer, "tq", queue)
    buffer = ResamplingReplayBuffer(
        trainer_mode="sync",
        trainer_config=OmegaConf.create({}),
        max_off_policy_threshold=8,
        max_off_policy_strategy="drop",
        sampler_kwargs=OmegaConf.create({"train_batch_size": 4, "limit": limit, "group_size": 2}),
        refill_fn=lambda count: [queue.ask(1, queue.asked < good_after) for _ in range(count)],
    )
    for _ in range(first):
        queue.ask(1, queue.asked < good_after)
    batch, metrics = buffer.sample(global_steps=1, partition_id="train", batch_size=4)
    assert len({key.split("_")[0] for key in batch.keys}) == 4 and len(batch.keys) == 8
    assert metrics["training/filter_groups/evicted_samples"] == given_up
    alike = [key for key in batch.keys if int(key.split("_")[0].partition("-")[2]) < good_after]
    assert len(alike) == 2 * left
    assert batch.keys == sorted(batch.keys)  # as they were asked for, with their tags


def test_what_is_asked_for_next_does_not_hang_on_what_has_ended_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts of four are equal, and one still runs. A run that repeats drops none before all have ended."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.v1 import replay_buffer

    from tagpr_rl.backend.trainer import replay_buffers

    queue, looks, dropped = Queue(), [], []
    for number in range(4):
        queue.ask(1, alike=number < 2)
    list_all = queue.kv_list

    def kv_list() -> dict[str, Any]:
        looks.append(len(dropped))
        queue.items[prompt_name(1, 3)]["status"] = "running" if len(looks) < 4 else "finished"
        return list_all()

    queue.kv_list = kv_list  # type: ignore[method-assign]
    monkeypatch.setattr(replay_buffer, "tq", queue)
    monkeypatch.setattr(replay_buffers, "from_environment", lambda: SimpleNamespace(deterministic=True))
    monkeypatch.setattr(replay_buffers, "POLL_SECONDS", 0.0)

    def refill(count: int) -> None:
        dropped.append(count)
        queue.ask(count, alike=False)

    buffer = replay_buffers.ResamplingReplayBuffer(
        trainer_mode="sync", trainer_config=OmegaConf.create({}), max_off_policy_threshold=8,
        max_off_policy_strategy="drop", refill_fn=refill,
        sampler_kwargs=OmegaConf.create({"train_batch_size": 4, "limit": 9, "group_size": 2}),
    )  # fmt: skip
    batch, _ = buffer.sample(global_steps=1, partition_id="train", batch_size=4)
    assert looks[:4] == [0, 0, 0, 0] and dropped == [4]  # verl asks for two a dropped group
    assert [key.split("_")[0][-1] for key in batch.keys[::2]] == ["2", "3", "4", "5"]


def test_prompts_have_names_in_the_order_in_which_a_step_asks_for_them() -> None:
    from tensordict import TensorDict

    from tagpr_rl.backend.trainer.trainers import OrderHooks

    class Verl:
        def _next_train_batch(self, count: int) -> Any:
            return TensorDict({}, batch_size=[count])

    trainer = type("Trainer", (OrderHooks, Verl), {})()
    names = []
    for trainer.global_steps, count in ((4, 2), (4, 1), (5, 2)):
        names += list(trainer._next_train_batch(count)["uid"])
    assert names == ["000004-000000", "000004-000001", "000004-000002", "000005-000000", "000005-000001"]


def test_resampling_is_switched_on_by_its_key() -> None:
    config = composed("advantage.zero_variance=resample", "advantage.resample_limit=1.5")
    assert config.algorithm.filter_groups.enable and config.algorithm.filter_groups.metric == "reward"
    sampler = config.trainer.v1.sampler
    assert sampler.custom_sampler.name == "ResamplingReplayBuffer"
    assert dict(sampler.sampler_kwargs) == {"train_batch_size": 32, "limit": 48, "group_size": 8}


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_the_tokens_of_a_step_with_real_tokenizers(kind: Any) -> None:
    """Both ways to a token's place agree, and the tokens of a step decode to the step."""
    from tagpr_rl.backend.rollout.agent_loop import StepTokens
    from tagpr_rl.model.tiny import build_tokenizer
    from tagpr_rl.prompts.tokens import ResponseText
    from tagpr_rl.reward.response import read_response, response_parts, to_tokens
    from tagpr_rl.reward.spans import starts_by_encoding, token_starts
    from tagpr_rl.tags.schema import default_schema

    steps = ("<examine_examples>the user wrote caf\u00e9 \u2603 twice</examine_examples>", "<conclude>so 5</conclude>")
    text = f"<think>{steps[0]}\n{steps[1]}</think> yes"
    tags = ("think", "examine_examples", "conclude")
    phrases = [f"<{mark}{tag}>" for tag in tags for mark in ("", "/")] if kind == "word" else []
    corpus = [text] if kind == "word" else [text, " ".join(f"word{i}" for i in range(600))]
    tokenizer, made = build_tokenizer(corpus, phrases, 400)
    assert made == kind
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    text_of = ResponseText(tokenizer, default_schema())
    response = text_of([], ids)
    parts = response_parts(read_response(response, default_schema()))
    finder = StepTokens(tokenizer, text_of)
    actual = finder.locate([], ids, parts)
    assert [step.tag for step in actual.steps] == ["examine_examples", "conclude"]
    for step, written in zip(actual.steps, steps, strict=True):
        assert "".join(tokenizer.decode(ids[step.start : step.end]).split()) == "".join(written.split())
    assert starts_by_encoding(ids, response, finder._encode, text_of.dropped) is not None
    slow = to_tokens(parts, token_starts(ids, text_of.decode))
    assert slow == actual


def test_the_hook_reads_the_recipe_s_rules() -> None:
    from tagpr_rl.backend.trainer.advantages import rules_from
    from tagpr_rl.reward.components import short_form
    from tagpr_rl.reward.update import AdvantageRules

    config = composed("advantage.credit=step", "advantage.normalise=none")
    expected = AdvantageRules("none", "keep", "step", 0.2, short_form(alpha=0.1, beta=0.1, gamma=0.1))
    assert rules_from(config.reward.reward_kwargs) == expected
