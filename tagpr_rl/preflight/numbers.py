"""Numbers that are legal and make no sense: learning rates, decay rates, temperatures, clips, time-outs, budgets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tagpr_rl.config import (
    ChainsStage,
    EndpointBlock,
    EvaluateStage,
    GrpoStage,
    PrmuStage,
    SftStage,
    TrainingStage,
    stage_limits,
)
from tagpr_rl.preflight.finding import Finding, PlannedRun
from tagpr_rl.reward.components import SHORT_FORM

LONGEST_TOKENS = 2_000_000
MOST_RESPONSES = 1_000_000
"""Of a step; the driver holds all of them in memory."""
MOST_STEPS = 10_000_000


@dataclass(frozen=True, slots=True)
class Range:
    """Where a number makes sense. Outside [low, high] it is a mistake, outside [least, most] a warning."""

    low: float
    least: float
    most: float
    high: float
    why: str
    """What happens outside."""

    def judge(self, key: str, value: float) -> Iterator[Finding]:
        """A finding if the value lies outside."""
        if not self.low <= value <= self.high:
            yield Finding(key, f"{value:g}", self.why, f"use a value from {self.least:g} to {self.most:g}")
        elif not self.least <= value <= self.most:
            yield Finding(key, f"{value:g}", f"unusual: {self.why}", f"mostly {self.least:g} to {self.most:g}", True)


_INF = math.inf
_WEIGHT = Range(0, 0, 1, 10, "the task's own weight is 1, and this term drowns it")
_TEMPERATURE = Range(0, 0, 1.5, 2, "the model writes noise, and most endpoints refuse more than 2")
_NORM = Range(1e-4, 1e-2, 100, 1e5, "the gradient is scaled to nothing, or never")
_DECAY = Range(0, 0, 1, 10, "the weights decay faster than they learn")
_WAIT = Range(1, 5, 7200, 86_400, "it gives up before the other side can answer, or hangs for a day before it says so")
_SHARED: dict[str, Range] = {"weight_decay": _DECAY, "max_grad_norm": _NORM}
RANGES: dict[type[TrainingStage] | type[EvaluateStage], dict[str, Range]] = {
    SftStage: _SHARED,
    PrmuStage: {
        "centre": Range(0, 0, 1, 100, "the penalty drowns the loss"),
        "max_items": Range(1, 1, 256, 10_000, "no memory holds the items of a batch"),
    },
    GrpoStage: {
        **_SHARED,
        "temperature": Range(
            0.05, 0.3, 1.5, 3, "near 0 all responses of a group are equal and teach nothing, far above 1 they are noise"
        ),
        "clip_low": Range(0, 1e-4, 0.5, 0.9999, "from 1 on a ratio that falls is never clipped"),
        "clip_high": Range(0, 1e-4, 1, 10, "a ratio that rises is never clipped"),
        "kl_coef": Range(0, 0, 1, 10, "the policy stays where it starts"),
        "rollout_timeout_s": Range(
            1, 30, 14_400, 86_400, "no response ends in time, or an engine that hangs is noticed after a day"
        ),
        "prmu_timeout_s": Range(1, 5, 7200, 86_400, "no response is scored in time, or a hang is noticed after a day"),
    },
    EvaluateStage: {"temperature": _TEMPERATURE},
}
_RUN = {
    "platform.zmq_timeout_s": _WAIT,
    "data.retrieval.k": Range(1, 1, 1000, 100_000, "no prompt holds so many items"),
    "data.retrieval.batch_size": Range(1, 1, 8192, 100_000, "no memory holds such a pass"),
    "platform.threads": Range(1, 1, 256, 1024, "more threads than any machine has cores"),
    "placement.warmup_batches": Range(0, 0, 4, 100, "responses come from weights that are so many steps old"),
    "placement.prmu_serving.restarts": Range(0, 0, 100, 10_000, "an actor that cannot start is started for hours"),
    "placement.prmu_serving.health_s": Range(
        0.5, 2, 3600, 86_400, "an actor at work counts as dead, or a dead one as at work"
    ),
    "cluster.wait_s": Range(0, 0, 7200, 7 * 86_400, "it waits for days before it says what is missing"),
}
_ENDPOINT = {
    "temperature": _TEMPERATURE,
    "max_tokens": Range(8, 64, 200_000, LONGEST_TOKENS, "no chain fits, or no model writes so much"),
    "concurrency": Range(1, 1, 1024, 10_000, "more connections than a process may open"),
    "timeouts.attempt_s": Range(1, 5, 7200, 86_400, "every answer comes too late, or a hang is noticed after a day"),
    "retries.longest_wait_s": Range(0, 0, 3600, 86_400, "a request waits for days"),
    "retries.times": Range(0, 0, 50, 1000, "a request that cannot succeed is sent for days"),
}


def numbers(plan: PlannedRun) -> Iterator[Finding]:
    """Numbers outside their reasonable range, block by block."""
    for kind, ranges in RANGES.items():
        for name, stage in plan.stages(kind):
            for key, limits in ranges.items():
                yield from limits.judge(f"stages.{name}.{key}", _at(stage, key))
    for key, limits in _RUN.items():
        yield from limits.judge(key, _at(plan.recipe, key))
    for where, block in plan.endpoints():
        for key, limits in _ENDPOINT.items():
            yield from limits.judge(f"{where}.{key}", _at(block, key))
    for name, grpo in plan.stages(GrpoStage):
        for term in grpo.terms:
            if term.name != "task_format":
                key = next((k for k, v in SHORT_FORM.items() if v in (term.name, *term.factors)), term.name)
                yield from _WEIGHT.judge(
                    f"stages.{name}.{'weights' if grpo.reward is None else 'reward'}.{key}", term.weight
                )
    platform = plan.recipe.platform
    if platform.device == "cuda":
        limits = Range(0.05, 0.1, 0.95, 0.99, "vLLM finds no room, or leaves none for anything else")
        yield from limits.judge("platform.vllm_gpu_utilization", platform.vllm_gpu_utilization)


def _at(block: Any, key: str) -> float:
    for part in key.split("."):
        block = getattr(block, part)
    return float(block)


def learning_rates(plan: PlannedRun) -> Iterator[Finding]:
    """Learning rates, warm-ups and AdamW's decay rates of the stages that train."""
    recipe = plan.recipe
    most, high = (0.03, 0.1) if recipe.model.path is None else (2e-3 if recipe.lora is not None else 3e-4, 0.02)
    why = "the weights diverge, or do not move at all"
    if (lora := recipe.lora) is not None:
        limits = Range(1e-3, 0.1, 16, 1000, "the adapter's product, which it scales, drowns the weights or is nothing")
        yield from limits.judge("lora.alpha / lora.rank", lora.alpha / lora.rank)
    for name, stage in plan.stages(TrainingStage):
        yield from Range(1e-10, 1e-8, most, high, why).judge(f"stages.{name}.lr", getattr(stage, "lr", most))
        if isinstance(stage, PrmuStage):
            yield from Range(1e-10, 1e-8, 0.03, 0.1, why).judge(f"stages.{name}.head_lr", stage.head_lr)
        yield from _warmup(name, stage)
        if isinstance(stage, SftStage | GrpoStage):
            yield from _betas(f"stages.{name}.betas", stage.betas)


def _warmup(name: str, stage: TrainingStage) -> Iterator[Finding]:
    key = "lr_warmup_steps" if isinstance(stage, GrpoStage) else "warmup_steps"
    warmup = getattr(stage, key, 0)
    if warmup > 2 * stage.steps and not isinstance(stage, PrmuStage):  # PRMU's is cut to half the steps
        share = stage.steps / warmup
        yield Finding(
            f"stages.{name}.{key}",
            warmup,
            f"of steps={stage.steps}: the learning rate reaches {share:.1%} of lr",
            "warm up in a small part of the steps",
            True,
        )


def _betas(key: str, betas: tuple[float, float]) -> Iterator[Finding]:
    shown = f"[{betas[0]:g}, {betas[1]:g}]"
    if not all(0 <= beta < 1 for beta in betas):
        yield Finding(key, shown, "AdamW's decay rates lie in [0, 1)", "mostly [0.9, 0.999]")
    elif betas[0] > betas[1] or betas[0] > 0.99 or betas[1] < 0.8:
        yield Finding(key, shown, "unusual: the step is larger than the gradient allows", "mostly [0.9, 0.999]", True)


def sizes(plan: PlannedRun) -> Iterator[Finding]:
    """Sizes that no machine holds; they are compared as numbers, and nothing of that size is made."""
    for name, stage in plan.stages(TrainingStage):
        if stage.steps > MOST_STEPS:
            yield Finding(f"stages.{name}.steps", stage.steps, "this ends in no lifetime", f"use at most {MOST_STEPS}")
        if stage.keep_checkpoints > 1000:
            yield Finding(f"stages.{name}.keep_checkpoints", stage.keep_checkpoints, "no disk holds them", "keep fewer")
        if not isinstance(stage, GrpoStage) and getattr(stage, "batch_size", 0) > MOST_RESPONSES:
            yield _too_many(f"stages.{name}.batch_size", getattr(stage, "batch_size", 0))
    for name, grpo in plan.stages(GrpoStage):
        responses = grpo.prompts_per_step * grpo.group_size
        if responses > MOST_RESPONSES:
            yield _too_many(f"stages.{name}.prompts_per_step * group_size", responses)
        elif grpo.group_size > 512:
            yield Finding(
                f"stages.{name}.group_size",
                grpo.group_size,
                "unusual: most of these responses are near-equal",
                "mostly 4 to 64",
                True,
            )
    for name, chains in plan.stages(ChainsStage):
        yield from Range(1, 1, 64, 10_000, "so many chains of one question repeat each other").judge(
            f"stages.{name}.samples", chains.samples
        )
    for name, prmu in plan.stages(PrmuStage):
        yield from Range(0, 0, 64, 10_000, "so many responses to one question repeat each other").judge(
            f"stages.{name}.policy_samples", prmu.policy_samples
        )
        if (prmu.user_shards or 0) > 100_000:
            yield Finding(f"stages.{name}.user_shards", prmu.user_shards, "more files than a folder holds", "use fewer")


def lengths(plan: PlannedRun) -> Iterator[Finding]:
    """Sequences, passes and a tiny model that no machine holds."""
    recipe = plan.recipe
    tokens = recipe.placement.prmu_serving.batch_tokens
    if tokens is not None:
        why = "a response is a pass of its own, or no memory holds such a pass"
        limits = Range(1, 1024, 131_072, LONGEST_TOKENS, why)
        yield from limits.judge("placement.prmu_serving.batch_tokens", tokens)
    prompt = recipe.data.prompt
    for key in ("max_tokens", "max_response_tokens"):
        if (tokens := getattr(prompt, key)) > LONGEST_TOKENS:
            yield Finding(f"data.prompt.{key}", tokens, "longer than any model reads", "lower it")
    tiny = recipe.model.tiny
    size = tiny.layers * (4 * tiny.hidden**2 + 3 * tiny.hidden * tiny.ffn) + tiny.max_vocab * tiny.hidden
    if recipe.model.path is None and size > 2e9:
        yield Finding(
            "model.tiny",
            f"{size:.1e} weights",
            "the tiny model is made and trained in one process's memory",
            "lower hidden, layers, ffn or max_vocab, or give model.path",
        )
    if recipe.model.path is None and tiny.hidden % (2 * tiny.heads):
        yield Finding(
            "model.tiny.hidden",
            tiny.hidden,
            f"not {tiny.heads} heads times an even number",
            "set hidden or heads so that it is",
        )


def _too_many(key: str, value: int) -> Finding:
    return Finding(key, value, "more than the driver's memory holds in one step", f"use at most {MOST_RESPONSES}")


def time_limits(plan: PlannedRun) -> Iterator[Finding]:
    """Time limits that contradict each other, and budgets that allow nothing."""
    for where, block in plan.endpoints():
        times = block.timeouts
        for key, longer in (("request_s", times.request_s), ("total_s", times.total_s)):
            if longer is not None and longer < times.attempt_s:
                yield Finding(
                    f"{where}.timeouts.{key}",
                    f"{longer:g}",
                    f"shorter than one attempt (attempt_s={times.attempt_s:g})",
                    f"raise {key} or lower attempt_s",
                )
        if block.retries.longest_wait_s < block.retries.first_wait_s:
            yield Finding(
                f"{where}.retries.longest_wait_s",
                f"{block.retries.longest_wait_s:g}",
                f"below first_wait_s={block.retries.first_wait_s:g}",
                "raise it",
            )
        yield from _budgets(where, block)
    for name, stage in plan.stages(GrpoStage):
        yield from _stop_budgets(plan, name, stage)


def _budgets(where: str, block: EndpointBlock) -> Iterator[Finding]:
    tokens, money = block.budget.tokens, block.budget.money
    if block.max_model_len is not None and block.max_model_len <= block.max_tokens:
        yield Finding(
            f"{where}.max_model_len",
            block.max_model_len,
            f"the completion alone may have max_tokens={block.max_tokens}",
            "raise it, or lower max_tokens",
        )
    if tokens is not None and tokens <= block.max_tokens:
        what = "nothing may be asked" if tokens == 0 else f"less than one answer of max_tokens={block.max_tokens}"
        yield Finding(f"{where}.budget.tokens", tokens, what, "raise it, or null for no limit")
    if money is not None and money <= 0:
        yield Finding(f"{where}.budget.money", f"{money:g}", "nothing may be asked", "raise it, or null for no limit")


def _stop_budgets(plan: PlannedRun, name: str, stage: GrpoStage) -> Iterable[Finding]:
    stop, responses = stage.stop, stage.prompts_per_step * stage.group_size
    if stop is None:
        return
    if stop.max_seconds is not None and stop.max_seconds < 1:
        yield Finding(
            f"stages.{name}.stop.max_seconds",
            f"{stop.max_seconds:g}",
            "the stage ends after its first step",
            "raise it",
        )
    if stop.max_tokens is not None and stop.max_tokens <= responses:
        yield Finding(
            f"stages.{name}.stop.max_tokens",
            stop.max_tokens,
            f"a step alone has {responses} responses: the stage ends after its first step",
            f"a step has up to {responses * sum(stage_limits(plan.recipe, stage))} tokens; raise it",
        )


def switched_off(plan: PlannedRun) -> Iterator[Finding]:
    """Shares that leave nothing of what the stage is for."""
    for name, stage in plan.stages(PrmuStage):
        if stage.user != "generic" and stage.user_dropout >= 1:
            yield Finding(
                f"stages.{name}.user_dropout", f"{stage.user_dropout:g}", "PRMU never sees who the user is", "use 0.5"
            )
        if stage.user != "generic" and stage.individual_weight <= 0:
            yield Finding(
                f"stages.{name}.individual_weight",
                f"{stage.individual_weight:g}",
                "the loss has no part that knows the user",
                "use 0.8",
            )
    for name, chains in plan.stages(ChainsStage):
        if chains.error_rate >= 1:
            yield Finding(
                f"stages.{name}.error_rate",
                f"{chains.error_rate:g}",
                "every chain is wrong, so there is nothing right to learn",
                "lower it",
            )
    for name, grpo in plan.stages(GrpoStage):
        if grpo.max_masked_fraction >= 1 and grpo.uses_prmu:
            yield Finding(
                f"stages.{name}.max_masked_fraction",
                f"{grpo.max_masked_fraction:g}",
                "a PRMU that scores nothing stops nothing",
                "use 0.05",
                True,
            )
