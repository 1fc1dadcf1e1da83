"""FLOPs and seconds of training, generation and scoring, from peak figures and the recipe's assumptions."""

from __future__ import annotations

import math

from tagpr_rl.config import BudgetBlock, GrpoStage, PrmuStage, Recipe, stage_limits
from tagpr_rl.plan.memory import PRMU_ITEM_TOKENS, PRMU_TOKENS, engine_devices, longest, prmu_shape
from tagpr_rl.plan.shapes import Device, ModelShape

Times = tuple[tuple[str, float, str], ...]
"""(what, seconds in the whole stage, the arithmetic)."""


def train_flops(shape: ModelShape, tokens: float, length: float, *, lora: bool) -> float:
    """FLOPs of forward and backward over `tokens` in sequences of `length`: 3 forward passes; 2 with LoRA, whose
    backward computes no gradient of the frozen weights. Recomputation is not counted: it lowers MFU instead."""
    return (2 if lora else 3) * tokens * shape.forward_flops(length / 2)


def generation_seconds(
    shape: ModelShape, device: Device, budget: BudgetBlock, *, responses: float, engines: int, tensor: int,
    concurrent: int, prompt: float, response: float, width: int = 2,
) -> float:  # fmt: skip
    """Seconds to prefill and decode `responses`: each token of a batch reads the weights and the batch's keys and
    values once (bandwidth), or computes (peak), whichever is slower; batches of `concurrent` one after another."""
    per_engine = -(-responses // engines)
    batch = min(concurrent, per_engine)
    waves = -(-per_engine // batch)
    context = prompt + response / 2
    read = (width * shape.parameters + batch * context * shape.kv_bytes(width)) / tensor
    by_memory = read / (device.bandwidth_gbps * 1e9 * budget.decode_efficiency)
    peak = device.bf16_tflops * 1e12 * budget.mfu * tensor
    by_compute = batch * shape.forward_flops(context) / peak
    prefill = per_engine * prompt * shape.forward_flops(prompt / 2) / peak
    return waves * response * max(by_memory, by_compute) + prefill


def train_time(recipe: Recipe, shape: ModelShape, tokens: float, device: Device | None, what: str = "train") -> Times:
    if device is None:
        return ()
    world = recipe.platform.nodes * recipe.platform.devices_per_node
    flops = train_flops(shape, tokens, longest(recipe) * recipe.budget.mean_length, lora=recipe.lora is not None)
    rate = world * device.bf16_tflops * 1e12 * recipe.budget.mfu
    rule = f"{flops:.2e} FLOPs / ({world} x {device.bf16_tflops:g} TFLOPS x MFU {recipe.budget.mfu:g})"
    return ((what, flops / rate, rule),)


def prmu_time(recipe: Recipe, stage: PrmuStage, shape: ModelShape, device: Device | None) -> Times:
    if device is None:
        return ()
    tokens = stage.steps * stage.batch_size * (2 * PRMU_TOKENS + stage.max_items * PRMU_ITEM_TOKENS)
    flops = train_flops(shape, tokens, PRMU_TOKENS, lora=False)
    rule = f"{flops:.2e} FLOPs / ({device.fp32_tflops:g} TFLOPS fp32 x MFU {recipe.budget.mfu:g}), full inputs"
    return (("train", flops / (device.fp32_tflops * 1e12 * recipe.budget.mfu), rule),)


def grpo_time(recipe: Recipe, stage: GrpoStage, shape: ModelShape, device: Device | None, fits: int) -> Times:
    if device is None:
        return ()
    budget, (prompt, response) = recipe.budget, stage_limits(recipe, stage)
    responses = stage.prompts_per_step * stage.group_size
    tensor = recipe.placement.tensor_parallel
    engines = max(1, engine_devices(recipe) // tensor)
    generated = stage.steps * generation_seconds(
        shape, device, budget, responses=responses, engines=engines, tensor=tensor, concurrent=fits,
        prompt=prompt * budget.mean_length, response=response * budget.mean_length,
        width=2 if recipe.model.dtype == "bfloat16" else 4,
    )  # fmt: skip
    rule = (
        f"{responses} responses on {engines} engine(s), {fits} at a time, "
        f"{device.bandwidth_gbps:g} GB/s x {budget.decode_efficiency:g}"
    )
    tokens = stage.steps * responses * longest(recipe) * budget.mean_length
    update = train_time(recipe, shape, tokens, device, "update")
    extra = (not stage.reuse_rollout_logprobs) + (stage.kl_coef > 0)
    factor = 2 if recipe.lora is not None else 3
    found = [("generate", generated, rule), *update]
    if extra:
        found.append(("log-probabilities", update[0][1] * extra / factor, f"{extra} more forward pass(es)"))
    scorer = prmu_shape(recipe, stage.prmu) if stage.prmu is not None and stage.weights.beta else None
    if scorer is not None and recipe.placement.prmu != "cpu":
        read = stage.steps * responses * PRMU_TOKENS * budget.mean_length  # profile items are cached
        flops = read * scorer.forward_flops(PRMU_TOKENS / 2)
        used = recipe.placement.prmu_serving.scorers
        if recipe.placement.prmu == "dedicated":
            used = max(1, math.ceil(used * recipe.placement.prmu_devices))
        else:
            used = min(used, recipe.platform.nodes * recipe.platform.devices_per_node)
        text = f"{flops:.2e} FLOPs / ({used} x {device.fp32_tflops:g} TFLOPS fp32 x MFU {budget.mfu:g})"
        found.append(("score", flops / (used * device.fp32_tflops * 1e12 * budget.mfu), text))
    return tuple(found)
